"""The law of scale is found again in losses that were made by one, within its intervals; and predictions are kept."""

import numpy as np
import pytest

from ludus.base.errors import DataError, RunError
from ludus.base.files import read_json, write_json
from ludus.planning import predictions, scaling_law, scaling_page
from ludus.planning.scaling_law import NAMES, Point

TRUE = {"E": 1.2, "A": 60.0, "B": 80.0, "alpha": 0.3, "beta": 0.32}


def points(noise: float, seed: int = 0) -> list[Point]:
    draws = np.random.default_rng(seed)
    exact = [
        Point(n, d, scaling_law._loss([TRUE[name] for name in NAMES], n, d))
        for n in (1e5, 3e5, 1e6, 4e6)
        for d in (3e5, 1e6, 4e6, 1.6e7)
    ]
    return [point._replace(loss=point.loss * float(np.exp(noise * draws.standard_normal()))) for point in exact]


@pytest.fixture(scope="module")
def law() -> scaling_law.Law:
    return scaling_law.fit(points(0.003))


def test_without_noise_the_constants_come_back():
    found = scaling_law.fit(points(0.0), bootstraps=5).constants
    assert found == pytest.approx(TRUE, rel=1e-3)


def test_with_noise_they_lie_in_their_intervals(law):
    for name, (low, high) in law.intervals().items():
        assert low <= TRUE[name] <= high, name
        assert low < law.constants[name] < high


def test_a_larger_run_is_foretold_within_its_interval(law):
    true = scaling_law._loss([TRUE[name] for name in NAMES], 2e7, 1e8)
    low, high = law.interval(2e7, 1e8)
    assert low < true < high
    assert high - low < 0.1 * true
    assert low < law.loss(2e7, 1e8) < high


def test_intervals_hold_as_often_as_they_say():
    inside = 0
    true = scaling_law._loss([TRUE[name] for name in NAMES], 1e7, 4e7)
    for seed in range(1, 13):
        low, high = scaling_law.fit(points(0.004, seed), bootstraps=60, seed=seed).interval(1e7, 4e7)
        inside += low <= true <= high
    assert inside >= 9  # of 12, at 90 %


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (points(0)[:5], "cannot tell five constants"),
        ([Point(n, 1e6, 2.0) for n in range(1000, 9000, 1000)], "same tokens; vary pretrain.steps"),
        ([Point(1e6, d, 2.0) for d in range(1000, 9000, 1000)], r"same parameters; vary model\.depth"),
        ([*points(0), Point(1e6, 1e6, float("nan"))], "no finite loss"),
    ],
)
def test_what_cannot_be_fitted_is_refused(bad, message):
    with pytest.raises(DataError, match=message):
        scaling_law.fit(bad)


def test_a_prediction_is_written_first_and_checked_when_the_run_has_ended(law, tmp_path):
    names = [str(number) for number in range(16)]
    file = predictions.write_law(tmp_path, law, points(0.003), names)
    again, kept = predictions.read_law(tmp_path)
    assert again.constants == law.constants
    assert kept == points(0.003)
    told = scaling_law.predict(again, 2e7, 1e8)
    run = tmp_path / "larger"
    assert predictions.check_prediction(run) is None
    predictions.record(run, told, law=file, settings=["model.depth=6"])
    assert predictions.check_prediction(run) is None
    (run / "pretrain").mkdir()
    (run / "pretrain" / "metrics.jsonl").write_text(f'{{"step": 1, "validation_loss": {told["loss"]}}}\n')
    assert "inside the interval" in str(predictions.check_prediction(run))
    assert read_json(run / "prediction.json")["outcome"]["inside"] is True
    with pytest.raises(RunError, match="trained already"):
        predictions.record(run, told, law=file, settings=[])
    (run / "pretrain" / "metrics.jsonl").write_text('{"step": 1, "validation_loss": 9.0}\n')
    assert "OUTSIDE" in str(predictions.check_prediction(run))
    write_json(run / "prediction.json", {"loss": "?"})
    with pytest.raises(RunError, match="damaged"):
        predictions.check_prediction(run)


def test_the_page_shows_curves_runs_and_the_prediction(law):
    names = [f"run {number} <b>" for number in range(16)]
    page = scaling_page.render("ladder", law, points(0.003), names, scaling_law.predict(law, 2e7, 1e8))
    assert "<svg" in page
    assert "20.0\u00a0M parameters on 100\u00a0M tokens" in page
    assert "run 3 &lt;b&gt;" in page
    assert page.count("<tr>") >= 16
