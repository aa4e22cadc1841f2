"""The bench of adapters as a page: the table, quality and forgetting against trainable parameters, memory and time.

What lives here: the page. What does not: the figures. The one idea: the best place in both plots is low and to the
left, and a kind is better than another only where their intervals leave no doubt.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ludus.evaluation.report import words
from ludus.evaluation.report.markup import NOTHING, Markup, document, element, row, section, table
from ludus.evaluation.scatter import Spot, scatter
from ludus.recipes.peft_results import Mean, Row, as_good, figure, merging, milliseconds, rows, with_interval

TONES = {"full": "f", "prefix": "c", "prompt": "c", "vera": "d", "ia3": "d", "loha": "e"}
AXIS = "trainable parameters"


def render(content: Mapping[str, Any]) -> str:
    """Return the page's HTML for what `bench.json` holds."""
    found, base = rows(content), next(each for each in content["bases"] if each["quantise"] == "none")
    model = Path(content["bench"]["model"]).name
    return document(
        f"{model} · adapters",
        _opening(model, content, found, base),
        _plots(found, base),
        _quality(found, content["bases"]),
        _cost(found),
        _merging(found),
        _failed(content["failed"]),
        _how(content, base),
    )


def _opening(model: str, content: Mapping[str, Any], found: Sequence[Row], base: Mapping[str, Any]) -> Markup:
    bench = content["bench"]
    facts = [element("b", f"Adapters on {model}"), element("span", words.plural(base["parameters"], "parameter"))]
    facts.append(element("span", f"{words.plural(bench['steps'], 'step')}, {words.plural(bench['seeds'], 'seed')}"))
    known = [each for each in found if each.loss is not None]
    if not known:
        sentence: Any = "No run has finished yet."
    else:
        best = min(known, key=lambda each: each.loss.value if each.loss else 0.0)
        least = min(as_good(known, best), key=lambda each: each.trainable)
        share = f" with {100 * least.share:.2g} % of the parameters" if least is not best else ""
        also = f"; {least.name} cannot be told from it{share}" if least is not best else ""
        sentence = ["Lowest held-out loss: ", element("b", best.name), also, "."]
    return element(
        "div", element("h1", facts, class_="name"), element("p", sentence, class_="headline"), class_="opening"
    )


def _plots(found: Sequence[Row], base: Mapping[str, Any]) -> Markup:
    quality = [_spot(each, each.loss) for each in found if each.loss]
    lost = [_spot(each, each.forgotten) for each in found if each.forgotten]
    plain = None if base["loss"] is None else ("untrained", base["loss"])
    charts = [
        scatter("Held-out loss", quality, unit="nats a token of the answer", horizontal=AXIS, base=plain),
        scatter(
            "Forgetting", lost, unit="change of bits per byte of general text", horizontal=AXIS, base=("none", 0.0)
        ),
    ]
    note = (
        "Lower is better in both, and further left is cheaper. Whiskers are 95 % intervals over seeds (Student); "
        "of one seed, forgetting has one over documents."
    )
    return section("Quality and forgetting", note, *charts) if any(charts) else NOTHING


def _spot(each: Row, figure_: Mean | None) -> Spot:
    assert figure_ is not None
    tone = TONES.get(each.name.split()[0], "b" if each.quantise != "none" else "a")
    return Spot(each.name, each.trainable, figure_.value, figure_.low, figure_.high, tone)


def _quality(found: Sequence[Row], bases: Sequence[Mapping[str, Any]]) -> Markup:
    exact = any(each.exact for each in found)
    lines = [
        row(
            base["name"],
            "–",
            "–",
            figure(base["loss"], 4),
            *([_share(base["exact"])] if exact else []),
            "–",
            class_="control",
        )
        for base in bases
    ]
    for each in found:
        loss = "diverged" if each.loss is None else with_interval(each.loss, 4)
        lines.append(
            row(
                each.name,
                words.whole(each.trainable),
                f"{100 * each.share:.3g} %",
                loss,
                *([_share(each.exact.value if each.exact else None)] if exact else []),
                "–" if each.forgotten is None else with_interval(each.forgotten, 4, signed=True),
            )
        )
    head = ["Kind", "Trainable", "Share", "Held-out loss", *(["Exact"] if exact else []), "Forgotten, bits/byte"]
    note = "The mean over seeds and half its 95 % interval. Exact: short answers that come out to the letter, greedily."
    return section("Figures", note, table(head, lines, class_="numbers"))


def _cost(found: Sequence[Row]) -> Markup:
    lines = [
        row(
            each.name,
            words.size(each.peak_bytes),
            words.size(each.adapter_bytes),
            milliseconds(each.cpu_seconds),
            milliseconds(each.wall_seconds),
            f"{each.rate:g}",
        )
        for each in found
    ]
    head = ["Kind", "Peak memory", "Gradients, optimizer", "Processor a step", "Wall a step", "Learning rate"]
    note = (
        "Peak memory is what the process took beyond its start, the model included; gradients and the optimizer's "
        "state are counted byte by byte. Times are the least over seeds."
    )
    return section("Memory and time", note, table(head, lines, class_="numbers"))


def _merging(found: Sequence[Row]) -> Markup:
    lines = [row(each.name, merging(each), element("td", element("small", each.merge_reason or ""))) for each in found]
    note = (
        "The largest difference of any logit on held-out examples between the adapter and the merged model, in float32."
    )
    return section("Merge certificates", note, table(["Kind", "Largest difference", ""], lines))


def _failed(failed: Mapping[str, str]) -> Markup:
    items = [row(name, element("td", element("bdi", reason), class_="bad")) for name, reason in failed.items()]
    return section("Failed", None, table(["Kind", "Why"], items)) if items else NOTHING


def _how(content: Mapping[str, Any], base: Mapping[str, Any]) -> Markup:
    bench = content["bench"]
    facts = {
        "model": bench["model"],
        "data": bench["data"],
        "examples": f"{base['examples']:,} to train on, {base['held_out_examples']:,} held out by their prompt's hash",
        "each step": f"{bench['rows']} packed rows of {bench['context']} tokens",
        "adapters": f"rank {bench['rank']} where they have one, all linear layers of the blocks",
        "precision": bench["precision"],
        "learning rates": "AdamW, for each kind its own",
    }
    lines = [row(name, element("td", str(value))) for name, value in facts.items()]
    rates = [
        row(each.name, f"{each.rate:g}", element("td", element("small", each.rate_reason))) for each in rows(content)
    ]
    note = "Every kind has the same examples in the same order; the seed decides the order and the fresh weights."
    return section(
        "How", note, table(["", ""], lines, class_="settings"), table(["Kind", "Rate", "Why"], rates, class_="settings")
    )


def _share(value: float | None) -> str:
    return "–" if value is None else words.percent(value)
