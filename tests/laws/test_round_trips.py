"""Law 8: what goes out comes back, and says the same elsewhere: a model with its tokenizer, from text to text.

Bytes, weights and adapters have tests of their own beside their modules; here they go round together.
"""

import pytest
import torch

from ludus.adapters import files as adapter_files
from ludus.adapters.surgery import merge
from ludus.generation.engine import Sampling, generate
from ludus.model import exchange
from ludus.text.chat import render
from ludus.text.settings import TokenizerSettings
from ludus.text.tokenizer import Tokenizer
from ludus.text.train import train

pytestmark = pytest.mark.law
TEXT = "You are a helpful assistant. What is 2 + 2? It is 4. Which module defines it? The module os.path.\n" * 4
QUESTIONS = [
    [{"role": "user", "content": "What is 2 + 2?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Überraschung, 日本?\n"}],
]


@pytest.fixture(scope="module", params=["bpe", "character"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return train([TEXT], TokenizerSettings(kind=request.param, vocabulary=300))


def answers(model, tokenizer: Tokenizer) -> list[list[int]]:
    prompts = [render(tokenizer, messages, generation_prompt=True).tokens for messages in QUESTIONS]
    sampling = Sampling(12, frozenset([tokenizer.end]), temperature=0)
    return [completion.tokens for completion in generate(model.eval(), prompts, sampling)]


@pytest.mark.parametrize("kind", ["plain", "tied"])
def test_a_saved_model_answers_as_before(models, tmp_path, tokenizer: Tokenizer, kind: str):
    model = models[kind](vocabulary=tokenizer.vocabulary_size)
    exchange.save(model, tmp_path / "model", tokenizer)
    again, words = exchange.load(tmp_path / "model"), exchange.load_tokenizer(tmp_path / "model")
    assert words.hash == tokenizer.hash
    assert words.decode_bytes(words.encode(bytes(range(256)))) == bytes(range(256))
    assert answers(again, words) == answers(model, tokenizer)


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["plain", "tied"])
def test_transformers_answers_a_conversation_as_ludus_does(models, tmp_path, tokenizer: Tokenizer, kind: str):
    transformers = pytest.importorskip("transformers")
    model = models[kind](vocabulary=tokenizer.vocabulary_size)
    exchange.save(model, tmp_path / "model", tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    for messages, expected in zip(QUESTIONS, answers(model, tokenizer), strict=True):
        prompt = words.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        assert prompt["input_ids"][0].tolist() == render(tokenizer, messages, generation_prompt=True).tokens
        found = theirs.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert found.tolist() == expected


def test_an_adapter_answers_alike_attached_reloaded_and_merged(models, tmp_path, tokenizer: Tokenizer):
    model = models["lora"](vocabulary=tokenizer.vocabulary_size)
    expected = answers(model, tokenizer)
    assert expected != answers(models["plain"](vocabulary=tokenizer.vocabulary_size), tokenizer)
    exchange.save(models["plain"](vocabulary=tokenizer.vocabulary_size), tmp_path / "base", tokenizer)
    adapter_files.save(model, tmp_path / "adapter", base=str(tmp_path / "base"))
    assert answers(adapter_files.load(exchange.load(tmp_path / "base"), tmp_path / "adapter"), tokenizer) == expected
    exchange.save(merge(model), tmp_path / "merged", tokenizer)
    merged = exchange.load(tmp_path / "merged")
    assert answers(merged, tokenizer) == expected
    assert torch.equal(
        merged.embed_tokens.weight, models["plain"](vocabulary=tokenizer.vocabulary_size).embed_tokens.weight
    )
