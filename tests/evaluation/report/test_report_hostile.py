"""Hostile text stays text, and no damage to a file stops the report."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from ludus.evaluation.report import render, write_comparison, write_report

HOSTILE = "</script></style><script>window.hacked=1</script><img src=x onerror=window.hacked=1>" + (
    '\'" onmouseover="window.hacked=1" &lt;\x00\x1b[31m\u202e'
)
# What the code itself writes and reads back; every other string is somebody's.
OURS = {"stage", "status", "started", "with", "verdict", "stages", "style"}
NAMED_BY_OTHERS = {"by_kind", "dropped", "settings", "origins", "summary", "model"}
needs_browser = pytest.mark.skipif(not any(map(shutil.which, render.BROWSERS)), reason="no Chromium installed")


def infect(value: Any, inside: str = "") -> Any:
    """Put hostile text into every string that a model, a document or a user may have written."""
    if isinstance(value, dict):
        prefix = HOSTILE if inside in NAMED_BY_OTHERS else ""
        return {prefix + key: one if key in OURS else infect(one, key) for key, one in value.items()}
    if isinstance(value, list):
        return [infect(one) for one in value]
    return HOSTILE + value if isinstance(value, str) else value


def infected(run: Path) -> Path:
    for path in [*run.rglob("*.json"), *run.rglob("*.jsonl")]:
        lines = path.read_text("utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text("utf-8")]
        path.write_text("\n".join(json.dumps(infect(json.loads(line))) for line in lines), "utf-8")
    stage = run / "<script>window.hacked=1<"
    shutil.copytree(run / "pretrain", stage)
    return run.rename(run.with_name("<img src=x onerror=window.hacked=1>"))


def test_hostile_text_stays_text(run, fake):
    clean = fake.read(write_report(run))
    path = write_report(infected(run))
    page, raw = fake.read(path), path.read_text("utf-8")
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in clean.elements}
    assert page.code == clean.code, "a second script or style, or one that was ended early"
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert page.text.count("window.hacked=1") > 100, "the hostile text was not shown, so nothing was tested"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", raw)


def test_hostile_text_stays_text_in_a_comparison(tmp_path, fake):
    folders = [fake.write_run(tmp_path / str(depth), model__depth=depth) for depth in (2, 4)]
    clean = fake.read(write_comparison(folders, tmp_path / "page.html", "two"))
    (tmp_path / "hostile").mkdir()
    evil = [
        infected(folder.rename(tmp_path / "hostile" / "run")).rename(tmp_path / f"<b>{folder.name}")
        for folder in folders
    ]
    page = fake.read(write_comparison(evil, tmp_path / "page.html", HOSTILE))
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in clean.elements} | {"small"}
    assert page.code == clean.code
    assert page.text.count("window.hacked=1") > 10


def test_a_lone_surrogate_in_an_answer_does_not_stop_the_report(run):
    (run / "pretrain" / "samples.jsonl").write_text('{"step": 1, "prompt": "\\ud800", "text": "\\udfff\\u0000"}\n')
    assert "\ufffd" in write_report(run).read_text("utf-8")


def test_damaged_files_are_named_on_the_page(run, fake):
    (run / "corpus" / "report.json").write_text("{")
    with (run / "pretrain" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1200, "lo')
    (run / "evaluation" / "results.json").write_text("[1]")
    text = fake.read(write_report(run)).text
    for words in ("Left out", "1 unreadable line left out", "corpus/report.json is not valid JSON", "holds no table"):
        assert words in text


@pytest.mark.parametrize("junk", [None, "x", -1, [], {}, True, float("nan"), 1e400])
def test_values_of_the_wrong_type_never_break_the_page(run, junk):
    def spoil(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: junk if not isinstance(one, dict | list) and key != "step" else spoil(one)
                for key, one in value.items()
            }
        return [spoil(one) for one in value] if isinstance(value, list) else value

    for path in run.rglob("*.json"):
        path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    for path in run.rglob("*.jsonl"):
        path.write_text("\n".join(json.dumps(spoil(json.loads(line))) for line in path.read_text().splitlines()[:30]))
    assert write_report(run).stat().st_size > 10_000


@pytest.mark.run
@needs_browser
def test_a_browser_runs_nothing_hostile_and_nothing_is_wider_than_a_telephone(run):
    path = write_report(infected(run))
    with render._Browser.open(render.find_browser(), 60) as browser:
        browser.load(path.resolve().as_uri(), 400, 800, dark=False)
        assert browser.evaluate("String(window.hacked)") == "undefined"
        assert browser.evaluate("document.querySelectorAll('.tip').length") > 5, "our own script did not run"
        assert browser.evaluate("document.documentElement.scrollWidth") == 400
        browser.load(path.resolve().as_uri(), 1200, 800, dark=True)
        assert browser.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
        assert browser.evaluate("document.documentElement.scrollWidth") == 1200
