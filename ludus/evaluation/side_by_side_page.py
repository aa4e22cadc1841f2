"""A comparison of two models as a page: the sum of it on top, every prompt with both answers below.

What lives here: the page. What does not: asking the models. The one idea: a reader sees first what changed on the
whole, with intervals, and only then the answers, in the order of the data and none picked out.
"""

from typing import Any

from ludus.evaluation.report import words
from ludus.evaluation.report.charts import score_bar
from ludus.evaluation.report.markup import NOTHING, Markup, document, element, fold, row, section, table
from ludus.evaluation.side_by_side import GRAM, Answer, Comparison

SHOWN, LONGEST = 24, 1_200
MARKS = {"forgotten": ("▼ forgotten", "degraded"), "improved": ("▲ improved", "improved")}


def render(found: Comparison, whole: dict[str, Any]) -> str:
    """Return the page's HTML; `whole` is the summary of `found`."""
    title = str(whole.get("title") or "before and after")
    return document(f"{title} · compare", _opening(title, whole), _summary(whole), _forgetting(whole), _cards(found))


def _opening(title: str, whole: dict[str, Any]) -> Markup:
    before, after = whole["before"], whole["after"]
    facts = [element("b", title), element("span", words.plural(whole["prompts"], "prompt"))]
    facts.append(element("span", words.plural(len(whole["seeds"]), "seed")))
    facts += [element("span", text) for key in ("sampling",) if (text := whole.get(key))]
    stopped, earlier = words.percent(after["stopped"]), words.percent(before["stopped"])
    said: list[Markup | str] = ["Of its answers ", element("b", stopped), f" end by themselves, {earlier} did before."]
    if whole["reference"] and after["reference_perplexity"]:
        said = [
            "Good answers have a perplexity of ",
            element("b", words.figure(after["reference_perplexity"])),
            f", {words.figure(before['reference_perplexity'])} before.",
        ]
    sentence = element("p", said, class_="headline")
    return element("div", element("h1", facts, class_="name"), sentence, class_="opening")


def _summary(whole: dict[str, Any]) -> Markup:
    sides = [("Before", whole["before"]), ("After", whole["after"])]
    scored = all(side["reference_perplexity"] for _, side in sides)
    rows = []
    for name, side in sides:
        bar = element(
            "td",
            element("b", words.percent(side["stopped"])),
            element("small", f"{100 * side['stopped_low']:.0f}–{100 * side['stopped_high']:.0f}"),
            score_bar(side["stopped"], side["stopped_low"], side["stopped_high"]),
            class_="accuracy",
        )
        cells = [
            ("Tokens per answer", f"{side['mean_tokens']:.1f}"),
            (f"Repeated runs of {GRAM}", words.percent(side["repetition"])),
            *([("Perplexity", words.figure(side["reference_perplexity"]))] if scored else []),
        ]
        rows.append(
            row(
                element("th", name, element("small", str(whole.get(name.lower() + "_model", "")))),
                bar,
                *(element("td", value, data_label=label) for label, value in cells),
            )
        )
    head = ["", "End by themselves", "Tokens per answer", f"Repeated runs of {GRAM} tokens"]
    head += ["Perplexity"] if scored else []
    note = "The same prompts with the same seeds. The whisker is the 95 % interval (Wilson)."
    note += " Perplexity is that of the good answers which the data knows." if scored else ""
    if whole.get("same_template") is False:
        note += " Each model is asked by its own chat template, so their perplexities are of other tokens."
    return section("On the whole", note, table(head, rows, class_="scores"), _good_answers(whole))


def _good_answers(whole: dict[str, Any]) -> Markup | None:
    change = whole["reference"]
    if not change:
        return None
    bounds = "" if change["low"] is None else f", 95 % interval {change['low']:+.3f} to {change['high']:+.3f}"
    said = f"The good answers of {words.plural(change['answers'], 'example')} became "
    said += "likelier" if change["difference"] < 0 else "less likely"
    return element("p", f"{said}: {change['difference']:+.3f} nats a token{bounds}.", class_="quiet")


def _forgetting(whole: dict[str, Any]) -> Markup:
    change = whole["forgetting"]
    if not change:
        return NOTHING
    mark, tone = MARKS.get(change["verdict"], ("≈ within noise", "within"))
    bounds = "" if change["low"] is None else f"{change['low']:+.4f} to {change['high']:+.4f}"
    rows = [
        row(
            "Bits per byte",
            f"{change['before']:.4f}",
            f"{change['after']:.4f}",
            element("td", element("b", f"{change['difference']:+.4f}"), " ", element("small", bounds)),
            element("td", element("span", mark, class_=f"chip {tone}")),
        )
    ]
    note = (
        f"General text that has nothing to do with the tuning: {whole.get('text') or 'text'}, "
        f"{words.plural(change['documents'], 'document')}. More bits mean that something was lost; the interval is of "
        "the paired difference, by bootstrap over documents."
    )
    return section("Forgetting", note, table(["", "Before", "After", "Change", ""], rows))


def _cards(found: Comparison) -> Markup:
    cards = [_card(found, number) for number in range(len(found.asked))]
    more = fold(f"{len(cards) - SHOWN} more prompts", cards[SHOWN:]) if len(cards) > SHOWN else None
    note = "In the order of the data, none picked out. An answer that was cut off by the limit on its length says so."
    return section("Side by side", note, cards[:SHOWN], more)


def _card(found: Comparison, number: int) -> Markup:
    question = found.asked[number]
    earlier = [
        element("p", element("small", f"{message['role']}: "), element("bdi", _cut(message["content"])))
        for message in question.messages[:-1]
    ]
    header = element("header", element("p", element("bdi", _cut(question.prompt)), class_="prompt"))
    columns = []
    for seed in found.before.answers:
        named = f" · seed {seed}" if len(found.before.answers) > 1 else ""
        columns.append(_said(f"Before{named}", found.before.answers[seed][number]))
        columns.append(_said(f"After{named}", found.after.answers[seed][number]))
    if question.reference is not None:
        columns.append(element("div", element("h4", "Good answer"), _text(question.reference), class_="right"))
    return element("article", earlier, header, element("div", columns, class_="columns thirds"), class_="answers")


def _said(label: str, answer: Answer) -> Markup:
    end = "" if answer.finish == "stop" else ", cut off"
    title = element("h4", f"{label} ", element("small", f"{words.plural(answer.tokens, 'token')}{end}"))
    return element("div", title, _text(answer.text))


def _text(text: str) -> Markup:
    said = element("bdi", _cut(text.strip())) if text.strip() else element("em", "said nothing")
    return element("p", said)


def _cut(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST].rstrip()} … [{len(text) - LONGEST:,} more characters]"
