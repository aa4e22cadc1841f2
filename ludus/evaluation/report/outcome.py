"""The top of the report, what it all cost, and how to talk to the result.

What lives here: the one sentence, the strip of stages, the table of costs, the way to chat. What does not: scores in
detail and curves. The one idea: who reads only the first line must already know what the run achieved, and if the
last stage made it worse or is missing, that line says so.
"""

import re
import shlex

from ludus.evaluation.report import tuning, words
from ludus.evaluation.report.charts import score_bar
from ludus.evaluation.report.markup import NOTHING, Markup, element, join, row, section, table
from ludus.evaluation.report.reading import CONTROL, TITLES, Run, column, number


def headline(run: Run) -> str:
    """Say in one sentence what the run achieved, in how much time, on what."""
    return f"{_achieved(run)}{_spent(run)}."


def title(run: Run) -> str:
    """Name the run for the browser's tab."""
    first, last = _accuracies(run)
    change = f": {words.percent(first)} → {words.percent(last)}" if first is not None else ""
    return f"{run.folder.name}{change} · ludus"


def opening(run: Run) -> Markup:
    """Lay out the name of the run, the sentence, what is unfinished, and the strip of stages."""
    started = min((str(m["started"]) for m in run.manifests.values() if m.get("started")), default="")
    facts = [
        element("b", run.folder.name),
        element("span", f"recipe {run.recipe}") if run.recipe and run.recipe != run.folder.name else None,
        element("span", started[:16].replace("T", " ") + (" UTC" if started.endswith(("Z", "+00:00")) else "")),
    ]
    warnings = [element("p", text, class_="warning") for text in _unfinished(run)]
    return element(
        "div",
        element("h1", facts, class_="name"),
        element("p", _loud(headline(run)), class_="headline"),
        warnings,
        _strip(run),
        class_="opening",
    )


def costs(run: Run) -> Markup:
    """Tabulate tokens, time, processor time and memory of each stage."""
    if not run.manifests:
        return NOTHING
    longest = max((_seconds(run, stage) for stage in run.manifests), default=0.0) or 1.0
    rows = []
    for stage, manifest in run.manifests.items():
        tokens, seconds = number(manifest.get("tokens")), _seconds(run, stage)
        rate = f"{words.amount(tokens / seconds)}/s" if tokens and seconds else ""
        time = element("td", words.duration(seconds), score_bar(min(1.0, seconds / longest)), class_="with-bar")
        peak = number(manifest.get("peak_memory_bytes"))
        cells = [
            words.amount(tokens) if tokens else "",
            element("td", rate, class_="speed"),
            time,
            words.duration(number(manifest.get("cpu_seconds"))),
        ]
        rows.append(row(element("th", run.name(stage), scope="row"), *cells, words.size(peak) if peak else "–"))
    totals = [sum(number(m.get(key)) or 0.0 for m in run.manifests.values()) for key in ("tokens", "cpu_seconds")]
    peak = max((number(m.get("peak_memory_bytes")) or 0.0 for m in run.manifests.values()), default=0.0)
    total = [
        element("td", class_="speed"),
        words.duration(_total_seconds(run)),
        words.duration(totals[1]),
        words.size(peak) if peak else "–",
    ]
    rows.append(row("Together", words.amount(totals[0]) if totals[0] else "", *total, class_="total"))
    head = ["Stage", "Tokens", element("th", "Speed", class_="speed"), "Time", "CPU time", "Peak memory"]
    return section("Cost", _environment(run), table(head, rows, class_="numbers"))


def chatting(run: Run) -> Markup:
    """Give the commands that talk to the model."""
    if not any(stage in run.manifests for stage in ("pretrain", "sft", "dpo", "grpo", "ppo")):
        return NOTHING
    path = shlex.quote(run.path)
    lines = [
        ("Talk to it in the terminal", f"ludus chat {path}"),
        ("Open the studio in the browser", f"ludus studio {path}"),
        ("See what it was made from", f"ludus explain {path}"),
    ]
    commands = [element("li", element("span", text), element("code", command)) for text, command in lines]
    return section("Chat with it", "One click selects a whole command.", element("ul", commands, class_="commands"))


def _achieved(run: Run) -> str:
    first, last = _accuracies(run)
    if first is not None and last is not None:
        scores = [(number(score.get("accuracy")) or 0.0, str(score.get("stage"))) for score in run.scores]
        best, stage = max(scores, key=lambda pair: pair[0])
        aside = f" (best after {run.label(stage)}: {words.percent(best)})" if best > last + 1e-9 else ""
        if len(scores) == 1:
            return f"{words.percent(last)} of held-out questions answered"
        return f"From {words.percent(first)} to {words.percent(last)} of held-out questions{aside}"
    if measured := tuning.perplexities(run):
        earlier, later = measured
        return f"Perplexity of good answers from {words.figure(earlier)} to {words.figure(later)}"
    for stage in run.metrics:
        bits = column(run.metrics[stage], "bits_per_byte")
        if bits:
            return f"Predicts text it has never seen at {words.figure(bits[-1][1])} bits per byte, learned"
    for stage in run.metrics:
        losses = column(run.metrics[stage], "loss")
        if losses:
            return f"Training loss from {words.figure(losses[0][1])} to {words.figure(losses[-1][1])} nats"
    done = [TITLES.get(stage, stage).lower() for stage in run.manifests]
    return f"Done so far: {' and '.join(done)}" if done else "Nothing has been finished yet"


def _spent(run: Run) -> str:
    seconds = _total_seconds(run)
    if not seconds:
        return ""
    return f" in {words.duration(seconds)}{_machine(run)}"


def _machine(run: Run) -> str:
    for manifest in run.manifests.values():
        environment = manifest.get("environment")
        if not isinstance(environment, dict):
            continue
        device = environment.get("device")
        if isinstance(device, str) and device and not device.startswith("cpu"):
            return f" on {device}"
        cores, threads = number(environment.get("cpu_count")), number(environment.get("threads"))
        used = min(cores, threads) if cores and threads else cores or threads
        if used:
            return f" on {words.plural(used, 'CPU core' if used == cores else 'CPU thread')}"
    return ""


def _environment(run: Run) -> str:
    """Say which software and machine the figures come from."""
    for manifest in run.manifests.values():
        environment = manifest.get("environment")
        if isinstance(environment, dict):
            named = [f"{name} {environment[name]}" for name in ("ludus", "torch", "python") if environment.get(name)]
            return " · ".join([*named, *[str(environment[key]) for key in ("platform",) if environment.get(key)]])
    return ""


def _unfinished(run: Run) -> list[str]:
    """List what the reader must know before believing the figures."""
    running = [run.label(stage) for stage, m in run.manifests.items() if m.get("status") == "running"]
    missing = [run.label(stage) for stage in run.stages if stage not in run.manifests and run.manifests]
    texts = [f"{', '.join(running)}: begun and not finished; the figures below are from the way."] if running else []
    if missing:
        texts.append(f"Not run yet: {', '.join(missing)}.")
    if sentence := tuning.lost(run):
        texts.append(sentence)
    return texts


def _strip(run: Run) -> Markup:
    shown = [stage for stage in run.stages if stage in run.manifests and stage not in ("evaluate", CONTROL)]
    steps = [_station(run, stage) for stage in shown]
    return element("ol", steps, class_="strip") if steps else NOTHING


def _station(run: Run, stage: str) -> Markup:
    score = next((score for score in run.results if score.get("stage") == stage), {})
    accuracy = number(score.get("accuracy"))
    if accuracy is not None:
        value, meaning, bar = words.percent(accuracy), "right answers", score_bar(accuracy)
    else:
        value, meaning = _product(run, stage)
        bar = element("span", class_="score plain")
    return element(
        "li",
        element("span", run.name(stage), class_="stage"),
        element("span", value, class_="value"),
        element("span", meaning, class_="meaning"),
        bar,
        element("span", words.duration(_seconds(run, stage)), class_="time"),
    )


def _product(run: Run, stage: str) -> tuple[str, str]:
    """Say what a stage without a score has made: a figure and its meaning."""
    if stage == "corpus" and isinstance(run.corpus.get("kept"), dict):
        return words.amount(number(run.corpus["kept"].get("characters"))), "characters kept"
    if stage == "tokenizer" and run.tokenizers:
        return words.whole(number(run.tokenizers[0].get("vocabulary"))), "tokens known"
    if stage == "compare" and (measured := tuning.perplexities(run)):
        return words.figure(measured[1]), "perplexity of good answers"
    records = run.metrics.get(stage, [])
    for name, meaning in (("bits_per_byte", "bits per byte"), ("validation_loss", "validation loss"), ("loss", "loss")):
        values = column(records, name)
        if values:
            return words.figure(values[-1][1]), meaning
    summary = run.manifests[stage].get("summary")
    for name, value in (summary if isinstance(summary, dict) else {}).items():
        if number(value) is not None:
            return words.amount(number(value)) if float(value) > 9999 else words.figure(value, 4), name.replace(
                "_", " "
            )
    return "done" if run.manifests[stage].get("status") == "complete" else "begun", ""


def _loud(sentence: str) -> Markup:
    """Set the figures of the sentence apart from its words."""
    parts = re.split(rf"([\d.,]+{words.SPACE}%|[\d.,]+(?= bits per byte))", sentence)
    return join(element("b", part) if index % 2 else part for index, part in enumerate(parts))


def _accuracies(run: Run) -> tuple[float | None, float | None]:
    values = [value for score in run.scores if (value := number(score.get("accuracy"))) is not None]
    return (values[0], values[-1]) if values else (None, None)


def _seconds(run: Run, stage: str) -> float:
    return number(run.manifests[stage].get("wall_seconds")) or 0.0


def _total_seconds(run: Run) -> float:
    return sum(_seconds(run, stage) for stage in run.manifests)
