"""The parts of the report: charts keep spikes, words do not lie, advice speaks only when a figure does."""

import itertools
import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ludus.evaluation.report import charts, markup, words, write_report
from ludus.evaluation.report.advice import advise
from ludus.evaluation.report.charts import Series, downsample, line_chart, smoothed, ticks
from ludus.evaluation.report.reading import Run

HERE = Path(markup.__file__).parent


def test_one_spike_in_a_hundred_thousand_steps_is_still_drawn():
    points = [(float(x), 2.0) for x in range(100_000)]
    points[61_803] = (61_803.0, 9.0)
    points[31_415] = (31_415.0, 0.5)
    thin = downsample(points)
    assert len(thin) <= 1000
    assert (61_803.0, 9.0) in thin
    assert (31_415.0, 0.5) in thin
    drawn = line_chart("Loss", [Series("train", points, smooth=True)]) or ""
    raw = re.search(r'class="raw a" d="M([^"]*)"', drawn)
    assert raw
    heights = [float(pair.split()[1]) for pair in raw[1].split("L")]
    assert min(heights) < 70, "the spike does not reach the top of the chart"


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400), st.integers(1, 20))
def test_thinning_keeps_the_ends_the_extremes_and_the_order(values, buckets):
    points = [(float(x), y) for x, y in enumerate(values)]
    thin = downsample(points, buckets)
    assert thin == sorted(set(thin))
    assert set(thin) <= set(points)
    assert thin[0] == points[0]
    assert thin[-1] == points[-1]
    assert min(y for _, y in thin) == min(values)
    assert max(y for _, y in thin) == max(values)
    assert len(thin) <= max(len(points) if len(points) <= 4 * buckets else 0, 4 * buckets)


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_round_inside_and_few(low, width):
    assume(width > 1e-5 * abs(low))
    high = low + width
    marks = ticks(low, high, 5)
    assert len(marks) <= 8
    assert all(low - 1e-6 * width <= mark <= high + 1e-6 * width for mark in marks)
    for one, other in itertools.pairwise(marks):
        leading = (other - one) / 10 ** math.floor(math.log10(other - one) + 1e-6)
        assert min(abs(leading - round_number) for round_number in (1, 2, 5)) < 1e-2


def test_a_moving_average_does_not_lag_behind_a_straight_line():
    line = [(float(x), 3.0 * x) for x in range(400)]
    assert all(abs(y - 3 * x) < 1e-6 for x, y in smoothed(line)[:-20])


def test_values_that_are_not_finite_are_counted_and_do_not_bend_the_axis():
    points = [(0.0, 1.0), (1.0, math.nan), (2.0, math.inf), (3.0, 2.0)]
    drawn = line_chart("Loss", [Series("train", points)]) or ""
    assert f"2{words.SPACE}values not finite" in drawn
    assert "nan" not in drawn
    assert line_chart("Loss", [Series("train", [(0.0, math.nan)])]) is None
    assert line_chart("Loss", []) is None


def test_a_single_value_and_a_constant_are_drawn():
    for points in ([(5.0, 1.0)], [(0.0, 0.0), (9.0, 0.0)], [(0.0, -3.0), (0.0, -3.0)]):
        assert "NaN" not in (line_chart("Loss", [Series("train", points)]) or "NaN")


def test_labels_at_the_ends_never_touch():
    series = [Series(f"run {index}", [(0.0, 1.0), (9.0, 1.0 + index / 1000)], "abcdef"[index]) for index in range(6)]
    tops = re.findall(r'class="end ." style="top:([-\d.]+)%"', line_chart("Loss", series) or "")
    places = sorted(map(float, tops))
    assert len(places) == 6
    assert all(other - one > 10 for one, other in itertools.pairwise(places))
    assert -1 < places[0] <= places[-1] <= 100


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (1, "100 %"), (0.784, "78 %"), (0.996, "99.6 %"), (0.9999, "99.99 %"), (0.003, "0.3 %"), (None, "–")],
)
def test_a_share_never_reads_all_or_nothing_unless_it_is(share, text):
    assert words.percent(share).replace(words.SPACE, " ") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.96, "10 s"),
        (59.7, "1 min"),
        (312, "5 min 12 s"),
        (3599.8, "1 h 00 min"),
        (11_100, "3 h 05 min"),
    ],
)
def test_durations_carry_over(seconds, text):
    assert words.duration(seconds).replace(words.SPACE, " ") == text


def test_numbers_are_written_for_people():
    assert words.points(0.12) == "+12"
    assert words.points(-0.034) == "−3.4"
    assert words.points(0.0) == "0"
    assert words.figure(1.4167) == "1.42"
    assert words.figure(0.00012345) == "0.000123"
    assert words.figure(12345.6) == "12,300"
    assert words.size(7.3e8).replace(words.SPACE, " ") == "730 MB"
    assert words.size(999.7e6).replace(words.SPACE, " ") == "1.00 GB"
    assert words.amount(9_830_400).replace(words.SPACE, " ") == "9.83 M"
    assert words.plural(1, "run").replace(words.SPACE, " ") == "1 run"


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_any_number_can_be_written(value):
    for write in (words.percent, words.figure, words.duration):
        assert write(value)


def series(name: str, values: list[float]) -> list[dict[str, float]]:
    return [{"step": float(index * 100), "loss": value, name: value} for index, value in enumerate(values)]


FLAT = [2.0] * 8
SETTINGS = {"pretrain.steps": 700, "pretrain.learning_rate": 0.01, "sft.steps": 90, "grpo.group_size": 8}
SETTINGS |= {"grpo.learning_rate": 1e-4, "evaluate.questions": 50, "exercises.count": 100, "dpo.steps": 10}


def findings(**content: object) -> str:
    found = advise(Run(Path("runs/x"), recipe="quickstart", settings=dict(SETTINGS), **content))  # type: ignore[arg-type]
    return " | ".join(f"{one.finding} → {one.command}" for one in found)


def score(stage: str, accuracy: float, spread: float = 0.03, **more: object) -> dict[str, object]:
    return {"stage": stage, "accuracy": accuracy, "low": accuracy - spread, "high": accuracy + spread} | more


def test_advice_is_silent_about_figures_that_are_well():
    assert findings(metrics={"pretrain": series("validation_loss", FLAT)}, results=[score("sft", 0.9)]) == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"metrics": {"pretrain": series("validation_loss", [4, 3.5, 3, 2.8, 2.6, 2.5, 2.4, 2.3])}},
            "pretrain.steps=1400",
        ),
        (
            {"metrics": {"pretrain": series("validation_loss", [4, 3, 2, 2.1, 2.3, 2.5, 2.7, 2.9])}},
            "pretrain.steps=200",
        ),
        ({"metrics": {"pretrain": series("loss", [2, math.nan, 2])}}, "pretrain.learning_rate=0.005"),
        ({"metrics": {"grpo": series("zero_variance", [0.7] * 8)}}, "grpo.group_size=16"),
        ({"metrics": {"grpo": series("entropy", [1, 1, 1, 0.5, 0.2, 0.05, 0.05, 0.05])}}, "grpo.learning_rate=5e-05"),
        ({"results": [score("sft", 0.9, by_kind={"spelling": {"accuracy": 0.2, "high": 0.4}})]}, "exercises.count=200"),
        ({"results": [score("sft", 0.5, 0.14)]}, "evaluate.questions=200"),
        ({"results": [score("dpo", 0.5), score("dpo-control", 0.6)]}, "dpo.steps=20"),
        (
            {"results": [score("grpo", 0.5, comparison={"verdict": "degraded", "difference": -0.1, "with": "dpo"})]},
            "grpo.learning_rate=5e-05",
        ),
        ({"results": [score("sft", 0.9)], "answers": {"sft": [{"style": "rambling"}] * 9}}, "sft.steps=180"),
    ],
)
def test_advice_speaks_when_a_figure_does(content, said):
    assert f"ludus run quickstart {said}" in findings(**content)


def luminance(colour: str) -> float:
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_colour_of_text_is_readable_in_both_schemes():
    themes = re.findall(r":root \{(.*?)\}", (HERE / "page.css").read_text("utf-8"), flags=re.S)
    assert len(themes) == 3  # light, dark, print
    for theme in themes:
        colours = dict(
            re.findall(r"--([\w-]+): (#[0-9a-f]{6})", re.sub(r"#fff;", "#ffffff;", theme.replace("#000;", "#000000;")))
        )
        for name in ("ink", "soft", "a", "b", "c", "d", "e", "f", "good", "bad"):
            for ground in ("paper", "wash"):
                dark, light = sorted((luminance(colours[name]), luminance(colours[ground])))
                assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{name} on {ground} is too faint"


def test_style_and_script_cannot_end_themselves_early():
    for name in ("page.css", "page.js"):
        assert "</" not in (HERE / name).read_text("utf-8")


def test_only_markup_passes_unescaped():
    assert markup.element("p", "<b>", markup.element("i", "&")) == "<p>&lt;b&gt;<i>&amp;</i></p>"
    assert markup.element("p", title='"><script>') == '<p title="&quot;&gt;&lt;script&gt;"></p>'
    assert markup.element("br", class_=None, hidden=True, draggable=False) == "<br hidden>"
    assert charts.score_bar(7.0, -3.0, 9.0).count("100.0%") == 2


def test_what_went_wrong_on_the_way_is_listed_with_its_cause(run):
    event = {"step": 7, "kind": "spike", "cause": "a bad <batch>", "advice": "lower the learning rate"}
    (run / "pretrain" / "events.jsonl").write_text(json.dumps(event) + "\n")
    page = write_report(run).read_text()
    assert "event on the way" in page
    assert "a bad &lt;batch&gt;" in page


def test_the_measures_of_pretraining_have_charts(run):
    lines = [
        {"step": step, "loss": 2.0, "learning_rate_matrix": 0.02 / step, "tokens_per_second": 5e4, "waiting": 0.01}
        for step in (1, 2, 3)
    ]
    (run / "pretrain" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_report(run).read_text()
    assert all(title in page for title in ("Learning rate", "Speed", "Waiting for data"))
