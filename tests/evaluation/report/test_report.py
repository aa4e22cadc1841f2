"""The report says what the run did, in the order one asks, and needs nothing from outside itself."""

import json
import os
import re
import shutil

import pytest

from ludus.base.errors import MissingExtra, RunError
from ludus.evaluation.report import advice, reading, render, to_png, write_comparison, write_report

needs_browser = pytest.mark.skipif(not any(map(shutil.which, render.BROWSERS)), reason="no Chromium installed")


def test_the_first_line_says_what_was_achieved(run, fake):
    path = write_report(run)
    assert path == run / "report.html"
    text = fake.read(path).text
    assert re.search(r"From 0 % to 8\d % of held-out questions in 5 min 12 s on 2 CPU cores", text)
    assert "2026-11-20 13:02 UTC" in text


def test_sections_come_in_the_order_one_asks(run, fake):
    text = fake.read(write_report(run)).text
    places = [
        text.index(word)
        for word in (
            "From",
            "Corpus",
            "Right answers",
            "Kind of question",
            "Training",
            "Samples on the way",
            "Before and after",
            "Read",
            "Tokens needed",
            "Peak memory",
            "Set by",
            "What to try next",
            "ludus chat runs/first",
        )
    ]
    assert places == sorted(places)


def test_every_score_has_its_interval_and_every_change_its_verdict(run, fake):
    text = fake.read(write_report(run)).text
    results = json.loads((run / "evaluation" / "results.json").read_text())["stages"]
    assert text.count("improved") + text.count("degraded") + text.count("within noise") == len(results) - 1
    for result in results:
        assert f"{100 * result['low']:.0f}–{100 * result['high']:.0f}" in text
    assert "control" in text
    assert "0.3 %" in text  # a dropped share too small for whole percents


def test_the_page_needs_nothing_from_outside_itself(run, fake):
    page = fake.read(write_report(run))
    policy = next(a for tag, a in page.elements if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert (
        policy["content"] == "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    )
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}
    assert not any({"src", "href", "srcset", "action"} & set(attributes) for _, attributes in page.elements)
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttp|import\(", "".join(page.code))


@pytest.mark.parametrize(
    "gone",
    [
        "run.json",
        "recipe.json",
        "corpus",
        "tokenizer",
        "pretrain",
        "sft",
        "dpo",
        "evaluation",
        "evaluation/answers",
        "grpo/metrics.jsonl",
        "pretrain/manifest.json",
    ],
)
def test_what_is_missing_is_left_out_and_the_rest_stays(run, gone, fake):
    shutil.rmtree(run / gone) if (run / gone).is_dir() else (run / gone).unlink()
    text = fake.read(write_report(run)).text
    assert "What to try next" in text or gone == "recipe.json"
    assert "Left out" not in text


def test_a_run_of_pretraining_alone_reports_bits_per_byte(tmp_path, fake):
    text = fake.read(write_report(fake.write_run(tmp_path / "runs" / "shakespeare", only_pretraining=True))).text
    assert re.search(r"Predicts text it has never seen at 1\.\d\d bits per byte", text)
    assert "Before and after" not in text
    assert "Once upon a time" in text


def test_an_empty_folder_is_a_report_and_no_folder_is_an_error(tmp_path, fake):
    assert "Nothing has been finished yet" in fake.read(write_report(tmp_path)).text
    with pytest.raises(RunError, match="not a run folder"):
        write_report(tmp_path / "nowhere")


def test_an_unfinished_stage_and_a_better_earlier_one_are_admitted(run, fake):
    fake.put(run / "grpo" / "manifest.json", fake.manifest("grpo", 4.0) | {"status": "running"})
    results = json.loads((run / "evaluation" / "results.json").read_text())
    results["stages"][-1]["accuracy"] = 0.3
    fake.put(run / "evaluation" / "results.json", results)
    (run / "evaluation" / "manifest.json").unlink()
    text = fake.read(write_report(run)).text
    assert "GRPO: begun and not finished" in text
    assert "Not run yet: Evaluation" in text
    assert re.search(r"to 30\s% of held-out questions \(best after DPO: \d\d\s%\s?\)", text)


def test_the_same_run_gives_the_same_page(run):
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_shown_answers_are_spread_and_not_chosen(run, fake):
    page = fake.read(write_report(run))
    shown = [attributes for tag, attributes in page.elements if tag == "article"]
    assert 12 <= len(shown) <= 24
    assert all(kind in page.text for kind in fake.kinds)
    assert 'title="wrong"' in (run / "report.html").read_text("utf-8")


def test_comparison_marks_the_best_and_shows_every_run(tmp_path, fake):
    folders = [
        fake.write_run(
            tmp_path / f"d{depth}-r{rate}", only_pretraining=True, model__depth=depth, pretrain__learning_rate=rate
        )
        for depth in (2, 4, 6)
        for rate in (0.001, 0.003, 0.01)
    ]
    fake.put(folders[0] / "pretrain" / "metrics.jsonl", [{"step": s, "loss": float("nan")} for s in range(9)])
    path = write_comparison(folders, tmp_path / "sweep.html", "a <sweep>")
    text, page = fake.read(path).text, fake.read(path)
    assert "Best: depth 6, learning rate 0.003, with 1.3" in text
    assert "a <sweep>" in text
    assert all(folder.name in text for folder in folders)
    assert f"Without a finite loss: {folders[0].name}" in text
    assert sum("best" in (a.get("class") or "") for _, a in page.elements) == 1
    assert [text.index(f"{value}", text.index("Final loss")) for value in ("0.001", "0.003", "0.01")]
    assert len(re.findall(r'data-name="', path.read_text("utf-8"))) == 2 * 8


def test_comparison_of_one_run_and_of_none(tmp_path, fake):
    one = fake.write_run(tmp_path / "one", only_pretraining=True)
    assert "Best: one" in fake.read(write_comparison([one], tmp_path / "page.html", "alone")).text
    with pytest.raises(RunError, match="no runs to compare"):
        write_comparison([], tmp_path / "page.html", "none")


def test_advice_changes_only_settings_the_recipe_has(run):
    content = reading.read_run(run)
    found = advice.advise(content)
    assert 3 <= len(found) <= 5
    for one in found:
        key = one.command.removeprefix("ludus run quickstart ").split("=")[0]
        assert key in content.settings
        assert any(character.isdigit() for character in one.finding)


@pytest.mark.run
@needs_browser
def test_a_picture_has_the_width_asked_for_and_the_whole_height(run, tmp_path):
    path = to_png(write_report(run), tmp_path / "report.png", 420, dark=True)
    head = path.read_bytes()[:24]
    assert head[1:4] == b"PNG"
    assert int.from_bytes(head[16:20]) == 420
    assert int.from_bytes(head[20:24]) > 4000


def test_without_a_browser_the_error_says_what_to_install(run, tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "PATH", str(tmp_path))
    with pytest.raises(MissingExtra, match="apt install chromium"):
        to_png(write_report(run), tmp_path / "report.png")
    with pytest.raises(RunError, match="does not exist"):
        to_png(tmp_path / "missing.html", tmp_path / "report.png")
