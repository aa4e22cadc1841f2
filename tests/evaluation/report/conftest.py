"""A run folder as the stages leave it, and a page as a browser would read it."""

import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ludus.evaluation.report import reading
from ludus.evaluation.statistics import compare, wilson

KINDS = ["addition", "capitals", "opposites", "plural", "spelling", "weekdays"]
QUESTIONS = {
    "addition": [(f"What is {a} plus {b}?", str(a + b)) for a in range(3, 9) for b in range(4, 10)],
    "capitals": [("What is the capital of France?", "Paris"), ("What is the capital of Peru?", "Lima")] * 18,
    "opposites": [("What is the opposite of hot?", "cold"), ("What is the opposite of early?", "late")] * 18,
    "plural": [("What is the plural of mouse?", "mice"), ("What is the plural of box?", "boxes")] * 18,
    "spelling": [("How many letters are in the word lantern?", "7"), ("Spell the word ship.", "s h i p")] * 18,
    "weekdays": [("Which day comes after Tuesday?", "Wednesday"), ("Which day comes before Friday?", "Thursday")] * 18,
}
STRENGTH = {"pretrain": 0.01, "sft": 0.55, "dpo-control": 0.58, "dpo": 0.66, "grpo": 0.8}
LABELS = {"pretrain": "base", "sft": "SFT", "dpo": "DPO", "grpo": "GRPO", "dpo-control": "likelihood only"}


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = isinstance(content, list)
    path.write_text("".join(json.dumps(one) + "\n" for one in content) if lines else json.dumps(content), "utf-8")


def manifest(stage: str, seconds: float, tokens: int = 0, memory: float = 4e8, **more: Any) -> dict[str, Any]:
    environment = {"python": "3.12.3", "torch": "2.13.0", "platform": "Linux x86_64", "cpu_count": 2, "threads": 2}
    return {
        "stage": stage,
        "status": "complete",
        "started": "2026-11-20T13:02:11+00:00",
        "wall_seconds": seconds,
        "cpu_seconds": seconds * 1.87,
        "peak_memory_bytes": memory,
        "tokens": tokens,
        "environment": environment | {"ludus": "0.1.0"},
    } | more


def language_metrics(rng: random.Random, steps: int, start: float, floor: float, tokens: int) -> list[dict[str, Any]]:
    records = []
    for step in range(steps):
        fall = math.exp(-5 * step / steps)
        loss = floor + (start - floor) * fall + rng.gauss(0, 0.05)
        record = {"step": step, "loss": loss, "gradient_norm": 0.4 + 2 * fall + abs(rng.gauss(0, 0.1))}
        record["tokens"] = tokens * (step + 1) // steps
        if (step + 1) % (steps // 12) == 0:
            held_out = floor + 0.08 + (start - floor) * fall
            record |= {"validation_loss": held_out, "bits_per_byte": held_out / (math.log(2) * 3.4)}
        records.append(record)
    return records


def answered(stage: str, kind: str, answer: str, rng: random.Random) -> tuple[str, bool, str]:
    bias = {"spelling": -0.5, "capitals": 0.15, "addition": -0.1}.get(kind, 0.1)
    right = rng.random() < STRENGTH[stage] + (bias if stage != "pretrain" else 0)
    if stage == "pretrain":
        text = (
            "\nThe boy said that he would go to the river, and the old man said that he would go to the river, and the"
        )
        return (text + f" {answer}" if right else text), right, "rambling"
    other = rng.choice(["Paris", "12", "late", "I do not know", "Monday"])
    text = f"The answer is {answer if right else other}." if stage == "sft" else f"{answer if right else other}."
    return text, right, "concise" if stage != "sft" or rng.random() < 0.6 else "rambling"


def write_evaluation(run: Path, rng: random.Random) -> None:
    asked = [(kind, *pair) for kind in KINDS for pair in QUESTIONS[kind]]
    marks: dict[str, list[bool]] = {}
    stages = []
    before = {"sft": "pretrain", "dpo-control": "sft", "dpo": "sft", "grpo": "dpo"}
    for stage in STRENGTH:
        answers = []
        for index, (kind, prompt, answer) in enumerate(asked):
            response, right, style = answered(stage, kind, answer, rng)
            answers.append({"id": f"q{index:04}", "kind": kind, "prompt": prompt, "answer": answer})
            answers[-1] |= {"response": response, "correct": right, "style": style}
        put(run / "evaluation" / "answers" / f"{stage}.jsonl", answers)
        marks[stage] = [one["correct"] for one in answers]
        by_kind = {}
        for kind in KINDS:
            hits = [one["correct"] for one in answers if one["kind"] == kind]
            low, high = wilson(sum(hits), len(hits))
            by_kind[kind] = {"accuracy": sum(hits) / len(hits), "low": low, "high": high, "questions": len(hits)}
        low, high = wilson(sum(marks[stage]), len(asked))
        comparison = None
        if stage in before:
            found = compare(marks[before[stage]], marks[stage])
            comparison = {"with": before[stage], "difference": found.difference, "low": found.low, "high": found.high}
            comparison["verdict"] = found.verdict
        entry = {"stage": stage, "label": LABELS[stage], "accuracy": sum(marks[stage]) / len(asked)}
        entry |= {"low": low, "high": high, "by_kind": by_kind, "bits_per_byte": 1.42 + 0.01 * len(stages)}
        concise = sum(one["style"] == "concise" for one in answers) / len(asked)
        entry |= {"concise_share": concise, "mean_tokens": 48 if stage == "pretrain" else 7.3, "comparison": comparison}
        stages.append(entry)
    put(run / "evaluation" / "results.json", {"questions": len(asked), "stages": stages})
    put(run / "evaluation" / "manifest.json", manifest("evaluate", 21.4))


def write_preferences(run: Path, rng: random.Random) -> None:
    dpo, grpo = [], []
    for step in range(120):
        way = 1 - math.exp(-step / 35)
        record = {"step": step, "loss": 0.693 - 0.4 * way + rng.gauss(0, 0.03), "margin": 2.1 * way + rng.gauss(0, 0.1)}
        record |= {
            "chosen_logp": -14 - 2 * way + rng.gauss(0, 0.3),
            "rejected_logp": -15 - 19 * way + rng.gauss(0, 0.5),
        }
        dpo.append(record | {"accuracy": min(1.0, 0.5 + 0.46 * way + rng.gauss(0, 0.03)), "tokens": 3000 * (step + 1)})
    for step in range(80):
        way = 1 - math.exp(-step / 30)
        record = {"step": step, "loss": rng.gauss(0, 0.01), "reward": 0.62 + 0.24 * way + rng.gauss(0, 0.04)}
        record |= {"kl": 0.04 * way + abs(rng.gauss(0, 0.002)), "entropy": 0.9 - 0.5 * way + rng.gauss(0, 0.03)}
        record |= {"length": 8 - 2 * way + rng.gauss(0, 0.2), "clipped": abs(rng.gauss(0.02, 0.01))}
        grpo.append(
            record | {"zero_variance": min(1.0, 0.35 + 0.3 * way + rng.gauss(0, 0.04)), "tokens": 9000 * (step + 1)}
        )
    put(run / "dpo" / "metrics.jsonl", dpo)
    put(run / "grpo" / "metrics.jsonl", grpo)
    put(run / "dpo" / "manifest.json", manifest("dpo", 31.2, 360_000, 6.4e8))
    put(run / "grpo" / "manifest.json", manifest("grpo", 74.9, 720_000, 5.1e8))


def write_run(run: Path, *, only_pretraining: bool = False, seed: int = 3, **settings: Any) -> Path:
    """Write a run folder as the stages leave it."""
    rng = random.Random(seed)
    stages = ["corpus", "tokenizer", "pretrain", "exercises", "sft", "dpo", "grpo", "evaluate"]
    put(run / "run.json", {"recipe": "quickstart", "stages": stages[:3] if only_pretraining else stages})
    values = {"seed": 1, "model": {"depth": 4, "width": 256}, "pretrain": {"steps": 1200, "learning_rate": 0.003}}
    values |= {"exercises": {"count": 4000}, "sft": {"steps": 300, "learning_rate": 0.0005}, "dpo": {"steps": 120}}
    values |= {"grpo": {"group_size": 8, "learning_rate": 0.0001}, "evaluate": {"questions": 216}}
    origins = dict.fromkeys(reading.flatten(values), "default") | {"model.width": "derived: 64 x model.depth"}
    origins |= {"seed": "command line", "pretrain.steps": "quickstart.yaml:12"}
    for key, value in settings.items():
        stage, _, name = key.partition("__")
        values[stage] = values[stage] | {name: value}
        origins[f"{stage}.{name}"] = "command line"
    put(run / "recipe.json", {"settings": values, "origins": origins})
    dropped = {"too_short": (61, 8_204), "duplicate": (42, 181_977), "held-out_question": (7, 21_310)}
    corpus = {
        "read": {"documents": 1204, "characters": 3_105_220},
        "kept": {"documents": 1094, "characters": 2_893_729},
    }
    corpus["dropped"] = {reason: {"documents": d, "characters": c} for reason, (d, c) in dropped.items()}
    corpus |= {
        "train": {"documents": 1039, "characters": 2_749_043},
        "validation": {"documents": 55, "characters": 144_686},
    }
    put(run / "corpus" / "report.json", corpus | {"notes": ["Held-out questions were removed by 13-word overlap."]})
    put(run / "corpus" / "manifest.json", manifest("corpus", 3.1, 0, 2.1e8))
    rows = [("this run", 36_113, 4.01, 4096), ("GPT-2", 37_420, 3.87, 50_257), ("cl100k", 35_620, 4.06, 100_277)]
    names = ("name", "tokens", "bytes_per_token", "vocabulary")
    tokenizers = [dict(zip(names, entry, strict=True)) for entry in [*rows, ("bytes", 144_830, 1.0, 256)]]
    put(run / "tokenizer" / "report.json", {"rows": tokenizers})
    put(run / "tokenizer" / "manifest.json", manifest("tokenizer", 8.7, 0, 2.6e8))
    rate = settings.get("pretrain__learning_rate", 0.003)
    floor = 3.3 - 0.05 * settings.get("model__depth", 4) + 0.3 * math.log10(rate / 0.004) ** 2
    put(run / "pretrain" / "metrics.jsonl", language_metrics(rng, 1200, 8.3, floor, 9_830_400))
    put(run / "pretrain" / "manifest.json", manifest("pretrain", 134.6, 9_830_400, 7.3e8))
    texts = {
        99: "the the , of the and the .",
        599: "there was a man who went to the house of the king.",
        1199: "there"
        " lived in a small village a miller, who had three sons. The eldest got the mill, and the youngest the cat.",
    }
    put(
        run / "pretrain" / "samples.jsonl",
        [{"step": s, "prompt": "Once upon a time", "text": t} for s, t in texts.items()],
    )
    if only_pretraining:
        return run
    put(run / "exercises" / "manifest.json", manifest("exercises", 1.2, summary={"exercises": 4000}))
    put(run / "sft" / "metrics.jsonl", language_metrics(rng, 300, 3.0, 0.7, 1_200_000))
    put(run / "sft" / "manifest.json", manifest("sft", 36.8, 1_200_000, 7.0e8))
    write_preferences(run, rng)
    write_evaluation(run, rng)
    return run


class Page(HTMLParser):
    """What a browser would build: the elements with their attributes, and the text outside style and script."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside, self.words, self.code = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside.append(tag)

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        (self.code if self.inside and self.inside[-1] in ("style", "script") else self.words).append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def read_page(path: Path) -> Page:
    return Page(path.read_text("utf-8"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of every stage."""
    return write_run(tmp_path / "runs" / "first")


@pytest.fixture
def fake() -> SimpleNamespace:
    """The tools to write other runs and to read pages."""
    return SimpleNamespace(write_run=write_run, put=put, manifest=manifest, kinds=KINDS, read=read_page)
