"""The pages for people: the list of runs, made here, and the chat, which is a file with a script of its own."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from ludus.evaluation.report.markup import Markup, element, row, table
from ludus.evaluation.report.words import percent
from ludus.studio.runs import Run

STATIC = {"chat.js": "text/javascript", "studio.css": "text/css"}
REFRESH_SECONDS = 10


@lru_cache
def read(name: str) -> str:
    """Return a file that lies beside this module."""
    return (Path(__file__).parent / "static" / name).read_text("utf-8")


def runs_page(folder: Path, runs: Sequence[Run], comparisons: Mapping[str, Path]) -> str:
    """Return the list of runs; it looks again by itself while one is running."""
    running = any(run.state[0] == "running" for run in runs)
    title = element("h1", "Runs", element("small", f"in {folder}"))
    if runs:
        rows = [run_row(run) for run in runs]
        content = table(["Run", "Recipe", "State", "Right answers", "Begun", ""], rows, class_="runs")
    else:
        content = element("p", "No run yet. Begin with ", element("code", "ludus run quickstart"), ".", class_="empty")
    sweeps = [element("li", element("a", name, href=url("runs", name, "comparison.html"))) for name in comparisons]
    below = element("section", element("h2", "Sweeps"), element("ul", sweeps)) if sweeps else None
    return document("Runs · ludus studio", title, content, below, refresh=running)


def run_row(run: Run) -> Markup:
    """Return a run as a row: its report, how it stands, and a way to talk with its newest model."""
    report = run.report.is_file()
    name = element("a", run.name, href=url("runs", run.name, "report.html")) if report else element("span", run.name)
    word, where = run.state
    state = [element("b", word, class_=word), element("small", where) if where else None]
    begun = run.started[:16].replace("T", " ") + (" UTC" if run.started.endswith("+00:00") else "")
    newest = next(reversed(run.models), None)
    talk = f"/chat?model={quote(f'{run.name}/{newest}', safe='')}"
    chat = element("a", "chat", href=talk) if newest else None
    return row(
        element("th", name, scope="row"), run.recipe, element("td", state), score(run), begun, element("td", chat)
    )


def score(run: Run) -> Markup:
    """Return the share of right answers, with its interval."""
    values = [run.score.get(key) if run.score else None for key in ("accuracy", "low", "high")]
    if not all(isinstance(value, int | float) for value in values):
        return element("td", "–")
    accuracy, low, high = (float(value) for value in values if value is not None)
    return element("td", element("b", percent(accuracy)), element("small", f"{percent(low)} to {percent(high)}"))


def url(*parts: str) -> str:
    """Return a path on this site."""
    return "/" + "/".join(quote(part) for part in parts)


def document(title: str, *content: Markup | None, refresh: bool = False) -> str:
    """Wrap content as a page of the studio."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="refresh", content=str(REFRESH_SECONDS)) if refresh else None,
        element("title", title),
        Markup('<link rel="stylesheet" href="/static/studio.css">'),
    )
    links = [element("a", "Runs", href="/"), element("a", "Chat", href="/chat")]
    nav = element("nav", element("b", "ludus"), links)
    return f"<!doctype html>\n{element('html', head, element('body', nav, element('main', content)), lang='en')}\n"
