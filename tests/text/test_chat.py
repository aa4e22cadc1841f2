import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ludus.base.errors import DataError
from ludus.text.chat import render
from ludus.text.settings import TokenizerSettings
from ludus.text.template import SPECIALS, TEMPLATE
from ludus.text.tokenizer import Tokenizer
from ludus.text.train import train

TEXT = "You are a helpful assistant. What is 2 + 2? It is 4.\nWhat is the capital of France? Paris, of course.\n" * 4


def made(kind: str, template: str = TEMPLATE) -> Tokenizer:
    plain = train([TEXT], TokenizerSettings(kind=kind, vocabulary=300))  # type: ignore[arg-type]
    return Tokenizer(plain.definition, template=template)


@pytest.fixture(scope="module", params=["bpe", "character"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return made(request.param)


awkward = st.sampled_from(
    [*SPECIALS, "<|assistant|>hi<|end|>", "{{ 7 * 7 }}", "\ue000content0\ue001", "\n", " ", "<0x00>"]
)
contents = st.one_of(st.text(max_size=20), st.lists(st.one_of(awkward, st.text(max_size=5)), max_size=5).map("".join))
answers = contents.filter(str.strip)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, str]]:
    system = [{"role": "system", "content": draw(contents)}] if draw(st.booleans()) else []
    turns = [
        [{"role": "user", "content": draw(contents)}, {"role": "assistant", "content": draw(answers)}]
        for _ in range(draw(st.integers(1, 3)))
    ]
    return system + [message for turn in turns for message in turn]


@pytest.mark.law
@settings(deadline=None, max_examples=60)
@given(messages=conversations())
def test_a_served_prompt_begins_the_training_rendering_token_for_token(tokenizer: Tokenizer, messages):
    full = render(tokenizer, messages)
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = render(tokenizer, messages[:index], generation_prompt=True)
            assert full.tokens[: len(prompt.tokens)] == prompt.tokens
            assert not any(prompt.mask[-1:])


@pytest.mark.law
@settings(deadline=None, max_examples=60)
@given(messages=conversations())
def test_the_loss_covers_exactly_the_answers_and_their_stop_tokens(tokenizer: Tokenizer, messages):
    rendered = render(tokenizer, messages)
    assert len(rendered.tokens) == len(rendered.mask)
    learnt = [token for token, bit in zip(rendered.tokens, rendered.mask, strict=True) if bit]
    answered = [[*tokenizer.encode(m["content"]), tokenizer.end] for m in messages if m["role"] == "assistant"]
    assert learnt == [token for answer in answered for token in answer]


@pytest.mark.law
@settings(deadline=None, max_examples=60)
@given(messages=conversations())
def test_only_the_template_places_special_tokens(tokenizer: Tokenizer, messages):
    tokens = render(tokenizer, messages).tokens
    special = [token for token in tokens if token in tokenizer.special_ids.values()]
    expected = ["<|bos|>"]
    for message in messages:
        expected += [f"<|{message['role']}|>", "<|end|>"]
    assert special == [tokenizer.special_ids[token] for token in expected]


def test_a_conversation_reads_as_the_template_says(tokenizer: Tokenizer):
    messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
    expected = "<|bos|><|user|>What?<|end|><|assistant|>That.<|end|>"
    assert render(tokenizer, messages).tokens == tokenizer.encode_template(expected)
    prompt = render(tokenizer, messages[:1], generation_prompt=True)
    assert prompt.tokens == tokenizer.encode_template("<|bos|><|user|>What?<|end|><|assistant|>")


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "no messages"),
        ([{"role": "asistant", "content": "x"}], "did you mean 'assistant'"),
        ([{"content": "x"}], "unknown role None"),
        (["hello"], "is a str"),
        ([{"role": "user", "content": ["x"]}], "only text"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": " \n"}], "message 2 of 2.*empty"),
        ([{"role": "user", "content": "x", "tool_calls": []}], "unknown key 'tool_calls'"),
    ],
)
def test_what_is_no_conversation_is_refused_in_one_line(tokenizer: Tokenizer, messages, says: str):
    with pytest.raises(DataError, match=says) as caught:
        render(tokenizer, messages)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ messages[0].content }}{% if add_generation_prompt %}>{% endif %}", "does not show every message"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "does not close"),
        (
            "{% for m in messages %}{{ m.role }}{{ m.content }}<|end|>{% endfor %}{{ '!' if add_generation_prompt }}",
            "another",
        ),
        ("{% for m in messages %}", "not valid Jinja"),
        ("{{ raise_exception('never') }}", "never"),
        ("{{ messages.__class__.__mro__ }}", "cannot render|unsafe"),
        ("{{ messages.append(1) }}", "cannot render"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("x" * 70_000, "at most 65536"),
    ],
)
def test_a_template_that_would_train_something_else_than_it_serves_is_refused(template: str, says: str):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(DataError, match=says):
        render(made("character", template), messages)


def test_a_foreign_template_tokenises_its_words_alike_in_training_and_serving():
    template = (
        "{% for m in messages %}[{{ m.role }}] {{ 'What' if m.role == 'assistant' }}{{ m.content }}{{ eos_token }}\n"
        "{% endfor %}{% if add_generation_prompt %}[assistant] Wh{% endif %}"
    )
    tokenizer = made("bpe", template)
    assert len(tokenizer.encode(" What")) < len(tokenizer.encode(" Wh") + tokenizer.encode("at"))
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    prompt = render(tokenizer, messages[:1], generation_prompt=True).tokens
    full = render(tokenizer, messages)
    assert full.tokens[: len(prompt)] == prompt
    assert tokenizer.decode(full.tokens) == "[user] a\n[assistant] Whatb\n"


def test_ten_thousand_short_conversations_are_quick(tokenizer: Tokenizer):
    messages = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]
    start = time.process_time()
    for _ in range(2_000):
        render(tokenizer, messages)
    assert time.process_time() - start < 2.0  # five times slower than it should be, and still fine


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["bpe", "character"])
def test_transformers_renders_the_same_tokens(kind: str, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = made(kind)
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "  What is 2 + 2?\n"},
        {"role": "assistant", "content": "It is 4."},
        {"role": "user", "content": "Überraschung, 日本?"},
    ]
    for count, prompt in ((4, True), (3, False)):
        ids = theirs.apply_chat_template(messages[:count], add_generation_prompt=prompt, return_dict=True)["input_ids"]
        ours = render(tokenizer, messages[:count], generation_prompt=prompt).tokens
        assert list(ids) == ours
        assert theirs.decode(ours, skip_special_tokens=True) == tokenizer.decode(ours)
    assert theirs.encode("It is\x07 日.") == tokenizer.encode("It is\x07 日.")
    assert (theirs.bos_token_id, theirs.pad_token_id, theirs.eos_token_id) == (
        tokenizer.bos,
        tokenizer.pad,
        tokenizer.end,
    )
    assert len(theirs) == tokenizer.vocabulary_size
