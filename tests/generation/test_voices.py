"""Voices: a model and its adapters, which of them speaks, and how the base under them is loaded."""

import shutil

import pytest
import torch

from ludus.adapters import files
from ludus.adapters.apply import apply
from ludus.adapters.quantised import Quantised, quantise_model
from ludus.adapters.settings import LoraSettings
from ludus.adapters.surgery import adapters
from ludus.base.errors import CheckpointError, ConfigError, RunError
from ludus.generation.conversation import Answer, sampling, text_prompt
from ludus.generation.speaker import Speaker
from ludus.generation.voices import Voices
from ludus.model import exchange
from ludus.text.settings import TokenizerSettings
from ludus.text.train import train

QUESTION = "Grüße"


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory):
    """Save a model that others stand on."""
    tokenizer = train(["Grüße aus Köln, 🦉 und mehr. " * 9], TokenizerSettings(vocabulary=270))
    folder = tmp_path_factory.mktemp("voices") / "base"
    exchange.save(tiny(vocabulary=tokenizer.vocabulary_size, context=64), folder, tokenizer, {"stage": "sft"})
    return folder


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    """Return a maker of adapters on it."""

    def make(name, seed, quantise="none", **more):
        model = exchange.load(base)
        if quantise != "none":
            quantise_model(model, quantise)  # type: ignore[arg-type]
        apply(model, LoraSettings(rank=2), seed=seed)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_()
        folder = tmp_path_factory.mktemp("adapters") / name
        files.save(model, folder, base=str(base), **more)
        return folder

    return make


@pytest.fixture(scope="module")
def pair(adapter):
    """Save two adapters."""
    return adapter("one", 1), adapter("two", 2)


def said(speaker):
    answer = Answer(speaker, text_prompt(speaker, QUESTION, 12), sampling(12, 0.0))
    return "".join(answer)


def test_each_voice_says_what_it_says_alone_and_the_bare_model_is_untouched(base, pair):
    one, two = pair
    voices = Voices.load(base, [str(one), f"zwei={two}"])
    alone = [said(Speaker.load(path)) for path in (one, two, base)]
    assert len(set(alone)) == 3
    assert [said(voices.current)] == alone[:1]  # the first that is named speaks
    for _ in range(2):
        assert [said(voices.use(name)) for name in ("one", "zwei", None)] == alone
    assert voices.current is voices.bare


def test_an_adapter_is_a_model_and_can_be_taken_off(base, pair, tmp_path):
    voices = Voices.load(pair[0])
    assert list(voices.adapted) == ["one"]
    assert said(voices.current) == said(Speaker.load(pair[0]))
    assert said(voices.use(None)) == said(Speaker.load(base))
    moved = tmp_path / "moved"
    shutil.copytree(base, moved)
    assert said(Voices.load(pair[0], base=moved).current) == said(Speaker.load(pair[0]))


def test_the_base_is_as_it_was_while_the_adapter_learned_unless_told_otherwise(base, pair, adapter):
    narrow = adapter("narrow", 3, "nf4")

    def quantised(voices):
        return any(isinstance(module, Quantised) for module in voices.shelf.model.modules())

    voices = Voices.load(base, [str(narrow)])
    assert quantised(voices)
    assert voices.notes == ["the base is in nf4, as it was while the adapter learned"]
    assert not quantised(Voices.load(base, [str(narrow)], quantise="none"))
    voices = Voices.load(base, [str(narrow), str(pair[0])])
    assert not quantised(voices)
    assert voices.notes == [
        "narrow on a nf4 base, one on a whole base while they learned; it is whole now, "
        "--quantise nf4 or int8 makes it small"
    ]
    assert quantised(Voices.load(base, quantise="int8"))


def test_weights_are_of_the_type_that_was_asked_for_and_adapters_stay_wide(base, pair):
    voices = Voices.load(base, [str(pair[0])], dtype=torch.bfloat16)
    assert voices.shelf.model.embed_tokens.weight.dtype == torch.bfloat16
    [(_, first), *_] = adapters(voices.shelf.model)
    assert {first.get_parameter(part.attribute).dtype for part in first.parts()} == {torch.float32}
    assert said(voices.current)
    assert said(voices.use(None))


def test_an_adapter_that_brings_its_own_template_speaks_with_it(base, adapter):
    own = Speaker.load(base).tokenizer.with_template("{{ bos_token }}{{ messages[0].content }}!")
    taught = adapter("taught", 4, tokenizer=own)
    voices = Voices.load(base, [str(taught)])
    assert voices.current.tokenizer.template == own.template
    assert voices.bare.tokenizer.template != own.template


def test_more_tokens_that_an_adapter_was_trained_with_find_room(base, adapter):
    size = exchange.load(base).shape.vocabulary + 3
    grown = adapter("grown", 5, facts={"vocabulary": size})
    voices = Voices.load(base, [str(grown)])
    assert voices.shelf.model.shape.vocabulary == size
    assert said(voices.use(None)) == said(Speaker.load(base))


def test_what_does_not_go_together_is_refused_in_a_line(base, pair, tiny, tmp_path):
    one = pair[0]
    for given, message in [
        ([f"x={one}", f"x={pair[1]}"], "two adapters are called x"),
        ([f"off={one}"], "cannot be called 'off'"),
        ([f"a b={one}"], "cannot be called 'a b'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Voices.load(base, given)
    with pytest.raises(RunError, match="holds no adapter"):
        Voices.load(base, [str(base)])
    with pytest.raises(ConfigError, match="leave --base out"):
        Voices.load(base, base=base)
    other = tmp_path / "other"
    exchange.save(tiny(vocabulary=270, context=64, seed=9), other, Speaker.load(base).tokenizer)
    with pytest.raises(CheckpointError, match="was trained on other weights"):
        Voices.load(other, [str(one)])
    with pytest.raises(ConfigError, match="there is no adapter thre; known are one"):
        Voices.load(base, [str(one)]).use("thre")
