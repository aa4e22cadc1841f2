import pytest
import torch

from ludus.generation.engine import Completion, Sampling, generate, stream
from ludus.text.settings import TokenizerSettings
from ludus.text.train import train

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [15, 16]]


def asked(model, *, seed: int = 0, prompts=PROMPTS, group: int = 1, rows: int = 256, **how):
    sampling = Sampling(**{"max_new_tokens": 8, **how})
    generator = torch.Generator().manual_seed(seed)
    return generate(model, prompts, sampling, generator=generator, group=group, rows=rows)


def test_answers_come_in_the_order_of_the_prompts(tiny):
    model = tiny()
    together = asked(model, temperature=0)
    alone = [asked(model, prompts=[prompt], temperature=0)[0] for prompt in PROMPTS]
    assert [each.tokens for each in together] == [each.tokens for each in alone]


def test_an_answer_ends_with_its_stop_token_or_at_its_length(tiny):
    stops = frozenset(range(0, 61, 6))
    found = asked(tiny(), group=8, stop=stops, max_new_tokens=6)
    assert {each.finish for each in found} == {"stop", "length"}
    for each in found:
        assert len(each.tokens) == len(each.logps) <= 6
        assert not stops & set(each.tokens[:-1])
        assert (each.tokens[-1] in stops) == (each.finish == "stop")
        assert each.finish == "stop" or len(each.tokens) == 6


def test_answers_of_a_group_are_neighbours_and_differ(tiny):
    found = asked(tiny(), group=5)
    assert len(found) == 20
    first = [tuple(each.tokens) for each in found[:5]]
    assert len(set(first)) > 1


def test_the_generator_decides_and_the_global_one_is_left_alone(tiny):
    model, before = tiny(), torch.get_rng_state()
    one, same, other = (asked(model, seed=seed) for seed in (1, 1, 2))
    assert [each.tokens for each in one] == [each.tokens for each in same]
    assert [each.tokens for each in one] != [each.tokens for each in other]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("training", [False, True])
def test_dropout_is_off_while_sampling_and_the_mode_is_as_before(tiny, training: bool):
    model = tiny(dropout=0.5).train(training)
    assert asked(model, temperature=0)[0].tokens == asked(tiny(), temperature=0)[0].tokens
    assert model.training == training


def test_weights_can_be_trained_after_sampling(tiny):
    model = tiny()
    asked(model)
    model(torch.tensor(PROMPTS[:1])).sum().backward()
    assert model.norm.weight.grad is not None


def test_no_prompts_give_no_answers(tiny):
    assert asked(tiny(), prompts=[]) == []


def test_a_model_in_bfloat16_samples_too(tiny):
    model = tiny()
    model.precision = torch.bfloat16
    found = asked(model, group=2)
    assert all(len(each.tokens) == 8 for each in found)


def test_a_stream_yields_tokens_as_they_are_drawn(tiny):
    pieces = stream(tiny(), PROMPTS[0], Sampling(5, temperature=0))
    assert next(pieces) == asked(tiny(), prompts=PROMPTS[:1], temperature=0, max_new_tokens=1)[0].tokens[0]
    assert len(list(pieces)) == 4


def test_what_only_pads_a_vocabulary_says_nothing():
    tokenizer = train(["hello there hello there"], TokenizerSettings(vocabulary=262))
    said = tokenizer.encode("hello")
    beyond = tokenizer.vocabulary_size
    assert Completion([beyond, *said, beyond + 7]).text(tokenizer) == "hello"
