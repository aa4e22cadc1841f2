from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from ludus.data.batch import Batch
from ludus.learning.objectives.logps import frozen_logps, token_logps
from ludus.learning.objectives.policy import clipped_policy
from ludus.rollouts.settings import RolloutSettings
from ludus.rollouts.source import Rollouts, WithReference

STOP, GROUP, LONGEST = 7, 4, 6
PROMPTS = [[50 + number, *range(10, 12 + number % 5)] for number in range(9)]  # the first token says which it is


def mixed(number: int, answer) -> float:
    """Reward answers unlike each other; prompts 0 and 1 are beyond the model, 2 is mastered."""
    return {0: 0.0, 1: 0.0, 2: 1.0}.get(number, sum(answer.tokens) % 5 / 5)


def source(policy, *, score=mixed, splits=1, every_group=False, kinds=None, **settings) -> Rollouts:
    chosen = RolloutSettings(**{"prompts": 9, "group": GROUP, "max_new_tokens": LONGEST, **settings})
    more = {"stop": STOP, "seed": 3, "splits": splits, "every_group": every_group, "kinds": kinds}
    return Rollouts(policy, PROMPTS, score, chosen, **more)


def answers(batch: Batch) -> list[SimpleNamespace]:
    """Take a batch apart again into answers, by its documents alone."""
    found = []
    for row, documents in enumerate(batch.documents if batch.shared else ()):
        for document in range(1, int(documents.max()) + 1):
            first, *rest = (documents == document).nonzero()[:, 0].tolist()
            places = torch.tensor(rest) - 1  # what predicts them
            head = batch.tokens[row][documents == 0].tolist()
            found.append(
                SimpleNamespace(
                    prompt=[*head, int(batch.tokens[row, first])],
                    tokens=batch.tokens[row, rest].tolist(),
                    weights=batch.weights[row, places],
                    advantages=batch.advantages[row, places],
                    old_logps=batch.old_logps[row, places],
                )
            )
    return found


def alone(answer: SimpleNamespace) -> Batch:
    tokens = torch.tensor([[*answer.prompt, *answer.tokens]])
    weights = torch.zeros(1, tokens.shape[1] - 1)
    weights[:, len(answer.prompt) - 1 :] = 1
    return Batch(tokens=tokens, weights=weights, weight=1.0)


def test_every_answer_is_beside_its_own_prompt_with_its_own_advantage(tiny):
    seen: dict[tuple, float] = {}

    def score(number: int, answer) -> float:
        seen[(number, *answer.tokens)] = mixed(number, answer)
        return mixed(number, answer)

    batches = list(islice(source(tiny(), score=score, splits=3), 3))
    found = [answer for batch in batches for answer in answers(batch)]
    groups: dict[int, list[SimpleNamespace]] = {}
    for answer in found:
        number = answer.prompt[0] - 50
        assert answer.prompt == PROMPTS[number]
        assert len(answer.tokens) == LONGEST or answer.tokens[-1] == STOP
        assert STOP not in answer.tokens[:-1]
        groups.setdefault(number, []).append(answer)
    assert groups.keys() == set(range(3, 9))
    for number, group in groups.items():
        assert len(group) == GROUP
        rewards = [seen[(number, *answer.tokens)] for answer in group]
        for answer, reward in zip(group, rewards, strict=True):
            expected = torch.full((len(answer.tokens),), reward - sum(rewards) / GROUP)
            torch.testing.assert_close(answer.advantages, expected)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@pytest.mark.parametrize("splits", [1, 2, 5])
def test_weights_are_those_of_the_aggregation_and_of_all_answers(tiny, aggregation, splits):
    rollouts = source(tiny(), aggregation=aggregation, splits=splits)
    batches = list(islice(rollouts, splits))
    total = {"token": rollouts.tokens, "sequence": 9 * GROUP, "constant": 9 * GROUP}[aggregation]
    assert sum(batch.weight for batch in batches) == pytest.approx(total)  # also of those that have no gradient
    assert rollouts.metrics["zero_variance"] >= 3 / 9
    for batch in batches:
        found = answers(batch)
        for answer in found:
            each = {"token": 1.0, "sequence": 1 / len(answer.tokens), "constant": 1 / LONGEST}[aggregation]
            torch.testing.assert_close(answer.weights, torch.full((len(answer.tokens),), each))
        assert int((batch.weights != 0).sum()) == sum(len(answer.tokens) for answer in found)  # and nowhere else


@pytest.mark.law
@pytest.mark.parametrize("backend", ["plain", "fused"])
def test_the_engine_and_the_trainer_agree_on_every_probability(tiny, backend):
    model = tiny(backend=backend)
    (batch,) = islice(source(model, every_group=True), 1)
    assert len(answers(batch)) == 9 * GROUP
    gap = (token_logps(model, batch).logps - batch.old_logps)[batch.weights != 0].abs().max()
    assert gap <= 1e-4
    for answer in answers(batch)[::5]:
        found = token_logps(model, alone(answer)).logps[0, len(answer.prompt) - 1 :]
        assert (found - answer.old_logps).abs().max() <= 1e-4


@pytest.mark.law
@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_on_policy_the_gradient_is_that_of_reinforce(tiny, aggregation):
    model = tiny()
    rollouts = source(model, aggregation=aggregation, splits=2)
    batches = list(islice(rollouts, 2))
    total = sum(batch.weight for batch in batches)
    for batch in batches:
        sums = clipped_policy(low=0.2, high=0.2)(model, batch)
        (sums["loss"] / total).backward()
    found = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    model.zero_grad()

    gain = torch.zeros(())
    for answer in (answer for batch in batches for answer in answers(batch)):
        logps = model(torch.tensor([[*answer.prompt, *answer.tokens]])).log_softmax(dim=-1)[
            0, len(answer.prompt) - 1 : -1
        ]
        said = logps.gather(1, torch.tensor(answer.tokens)[:, None]).sum()
        length = {"token": 1, "sequence": len(answer.tokens), "constant": LONGEST}[aggregation]
        gain = gain + answer.advantages[0] * said / length
    (-gain / {"token": rollouts.tokens}.get(aggregation, 9 * GROUP)).backward()
    plain = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert float(plain.norm()) > 1e-3
    assert float((found - plain).norm() / plain.norm()) < 1e-5


def test_groups_of_one_mind_are_run_only_where_the_objective_asks_for_every_group(tiny):
    for every_group, expected in ((False, 6), (True, 9)):
        (batch,) = islice(source(tiny(), every_group=every_group), 1)
        assert len({answer.prompt[0] for answer in answers(batch)}) == expected
        assert batch.weight == 9 * GROUP


def test_a_rollout_of_one_mind_has_a_weight_and_no_gradient(tiny):
    model = tiny()
    (batch,) = islice(source(model, score=lambda number, answer: 1.0), 1)
    assert batch.weight == 9 * GROUP
    sums = clipped_policy(low=0.2, high=0.2)(model, batch)
    sums["loss"].backward()
    assert all(float(value.detach()) == 0 for value in sums.values())
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


def test_the_reference_is_asked_of_what_was_sampled(tiny):
    model, other = tiny(), tiny(seed=5)
    (batch,) = islice(WithReference(source(model, every_group=True), other), 1)
    assert torch.equal(batch.reference_logps, frozen_logps(other, batch))
    found = float(clipped_policy(low=0.2, high=0.2, kl=0.1)(model, batch)["kl"].detach())
    difference = batch.reference_logps - frozen_logps(model, batch)
    assert found == pytest.approx(float((batch.weights * (difference.exp() - 1 - difference)).sum()), rel=1e-5)
    assert found > 0


def test_each_rollout_is_yielded_as_often_as_there_are_epochs_and_the_next_is_drawn_anew(tiny):
    batches = list(islice(source(tiny(), splits=2, epochs=3), 8))
    assert batches[0] is batches[2] is batches[4]
    assert batches[1] is batches[3] is batches[5]
    assert not torch.equal(batches[6].tokens, batches[0].tokens)


def test_answers_come_from_the_policy_as_it_is_now(tiny):
    model = tiny()
    rollouts = source(model)
    next(rollouts)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.2)
    batch = next(rollouts)
    assert (token_logps(model, batch).logps - batch.old_logps)[batch.weights != 0].abs().max() <= 1e-4


@pytest.mark.parametrize("done", [0, 1, 3, 4, 6])
def test_a_resumed_source_yields_what_would_have_come(tiny, done):
    kinds = ["odd" if number % 2 else "even" for number in range(9)]
    options = {"splits": 2, "epochs": 2, "kinds": kinds, "prompts": 4}
    running = source(tiny(), **options)
    list(islice(running, done))
    resumed = source(tiny(), **options)
    resumed.load_state_dict(running.state_dict())
    assert resumed.metrics == running.metrics
    for one, other in islice(zip(running, resumed, strict=False), 6):
        for name, value in one.state_dict().items():
            theirs = other.state_dict()[name]
            assert torch.equal(value, theirs) if isinstance(value, torch.Tensor) else value == theirs
        assert (running.tokens, running.metrics) == (resumed.tokens, resumed.metrics)


def test_the_metrics_describe_the_rollout(tiny):
    scores: list[float] = []

    def score(number: int, answer) -> float:
        scores.append(mixed(number, answer))
        return scores[-1]

    rollouts = source(tiny(), score=score, every_group=True)
    found = answers(next(rollouts))
    assert rollouts.metrics["reward"] == pytest.approx(sum(scores) / 36)
    assert rollouts.metrics["length"] == pytest.approx(sum(len(answer.tokens) for answer in found) / 36)
    assert rollouts.tokens == sum(len(answer.tokens) for answer in found)
    assert rollouts.metrics["truncated"] == sum(answer.tokens[-1] != STOP for answer in found) / 36
