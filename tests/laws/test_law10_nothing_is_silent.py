"""Law 10: what is dropped is counted and shown, what was derived says from what, and no unknown key passes."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from law2_runs import RUN, before

from ludus.base.config import describe, resolve
from ludus.base.config.resolve import leaves
from ludus.base.errors import ConfigError
from ludus.cli.stage import PRESETS
from ludus.recipes.schema import Recipe

pytestmark = pytest.mark.law

PARAGRAPH = "A paragraph that says enough about number {} to be kept, and has words of its own: {}.\n"


def read(*overrides: str, recipe: str | Path | None = "quickstart"):
    return resolve(Recipe, recipe=recipe, presets=PRESETS, environment={}, overrides=overrides)


@pytest.fixture
def untidy(tmp_path: Path) -> Path:
    """A folder of texts, half of which cannot be used."""
    folder = tmp_path / "texts"
    (folder / ".git").mkdir(parents=True)
    words = [
        "apple brick cloud",
        "drum eagle fig",
        "goat hill ice",
        "jam kite lamp",
        "moon nest oak",
        "pear quilt rain",
    ]
    for number, own in enumerate(words):
        (folder / f"{number}.txt").write_text(PARAGRAPH.format(number, own * 9))
    shutil.copy(folder / "0.txt", folder / "copy.txt")
    (folder / "near.md").write_text((folder / "1.txt").read_text() + "Again.\n")
    (folder / "short.txt").write_text("Too short.")
    (folder / "blank.txt").write_text(" \n\n ")
    (folder / "dirty.txt").write_text("Blanks at the end   \n\n\n\nand a tab\t\n, in a text of some length.   \n")
    for name in ("a.pdf", "b.pdf", ".git/config", "nothing.txt"):
        (folder / name).touch()
    return folder


def test_every_document_and_character_read_is_accounted_for_and_shown(untidy, ludus, tmp_path):
    child = ludus("corpus", "name=untidy", f"corpus.path={untidy}", "threads=1", folder=tmp_path)
    assert child.wait() == 0, child.err
    report = json.loads((tmp_path / "runs/untidy/corpus/documents/report.json").read_text())
    for unit in ("documents", "characters"):
        lost = sum(count[unit] for count in report["dropped"].values())
        assert report["read"][unit] == report["kept"][unit] + lost
        assert report["kept"][unit] == report["train"][unit] + report["validation"][unit]
    assert report["read"]["documents"] == 11
    assert {"copy", "near copy", "too short", "empty"} <= report["dropped"].keys()
    for reason, lost in report["dropped"].items():
        assert (
            f"  dropped as {reason}: {lost['documents']:,} documents, {lost['characters']:,} characters\n" in child.out
        )
    assert report["skipped_files"] == {".pdf": 2, "hidden file": 1, "empty file": 1}
    for kind, count in report["skipped_files"].items():
        assert f"  passed over: {count} of kind {kind}\n" in child.out


def test_every_token_is_trained_on_and_padding_is_shown(tiny_run, tmp_path, ludus):
    before("pretrain", tiny_run, tmp_path)
    child = ludus("pretrain", "tiny.yaml", folder=tmp_path)
    assert child.wait() == 0, child.err
    about = json.loads((tmp_path / RUN / "tokenizer/tokens/train/tokens.json").read_text())
    shown = re.search(r"  ([\d,]+) tokens in ([\d,]+) rows an epoch \(([\d.]+)% padding, 0 dropped\)", child.out)
    assert shown is not None
    tokens, rows = (int(number.replace(",", "")) for number in shown.groups()[:2])
    assert tokens >= about["tokens"]  # neighbouring pieces of a document share one
    assert tokens - about["tokens"] < rows
    assert float(shown[3]) == pytest.approx(100 * (1 - tokens / (rows * 161)), abs=0.05)


def conversations(path: Path) -> None:
    turns = [("Hello?", "Hello."), ("Who?", "long " * 99), ("When?", "Now."), ("Where?", "far " * 99)]
    chats = [[{"role": "user", "content": a}, {"role": "assistant", "content": b}] for a, b in turns]
    chats.append([{"role": "user", "content": "Nobody answers."}])
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))


def test_conversations_left_out_are_counted_by_reason(tiny_run, tmp_path, ludus):
    before("sft", tiny_run, tmp_path)
    conversations(tmp_path / "chats.jsonl")
    child = ludus("sft", "tiny.yaml", "sft.data=chats.jsonl", "steps=1", folder=tmp_path)
    assert child.wait() == 0, child.err
    assert "  chats.jsonl: messages, 4 examples; left out: 1 without an answer to learn\n" in child.out
    assert "  2 are left out: longer than data.context=160 tokens (first: chats.jsonl:2)\n" in child.out
    assert "  2 conversations, " in child.out


def test_preferences_left_out_are_counted(tiny_run, tmp_path, ludus):
    before("dpo", tiny_run, tmp_path)
    pairs = [("a", "b", "c"), ("a", "b", "long " * 99), ("a", "so long " * 99, "b")]
    records = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in pairs]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    child = ludus("dpo", "tiny.yaml", "dpo.data=pairs.jsonl", "steps=1", folder=tmp_path)
    assert child.wait() == 0, child.err
    assert "  left out of 3 examples: 2 longer than data.context=160 tokens\n" in child.out
    assert "  dropout is off: " in child.out


def test_questions_without_room_for_an_answer_are_counted(tiny_run, tmp_path, ludus):
    before("grpo", tiny_run, tmp_path)
    questions = (tmp_path / RUN / "exercises/questions/train.jsonl").read_text().splitlines()
    lengths = sorted(len(json.loads(line)["prompt"]) for line in questions)
    median = lengths[len(lengths) // 2]
    room = 160 + 1 - 4 - median  # four special tokens stand around a question
    lost = sum(length > median for length in lengths)
    changed = ["steps=1", "turns=1", f"rollouts.max_new_tokens={room}"]
    child = ludus("grpo", "tiny.yaml", *changed, folder=tmp_path)
    assert child.wait() == 0, child.err
    assert f"  left out: {lost} of 17 questions leave no room for {room} more tokens in data.context=160\n" in child.out


@pytest.mark.parametrize("recipe", ["quickstart", "shakespeare", None])
def test_every_derived_value_says_from_what(recipe):
    resolved = read(recipe=recipe)
    assert resolved.origins.keys() == {path for path, _ in leaves(resolved.settings)}
    defaults = dict(leaves(Recipe()))
    for path, value in leaves(resolved.settings):
        origin = resolved.origins[path]
        assert f"{path}: " in resolved.render()
        if origin == "default" and path in defaults:  # others came with a change of kind
            assert value == defaults[path], f"{path} was changed in secret"
        assert re.match(r"default$|derived: .{10}|recipe \w+\.yaml:\d+$", origin), f"{path} is {value}: {origin}"
        assert not (value is not None and defaults.get(path, value) is None and origin == "default")


def test_a_derived_value_follows_what_it_was_derived_from_and_names_it():
    small, large = read("model.depth=3"), read("model.depth=12")
    assert small.settings.model.width < large.settings.model.width
    assert "model.depth=12" in large.origins["model.width"]
    assert large.origins["model.depth"] == "command line"
    assert read("model.depth=12", "model.width=96").origins["model.width"] == "command line"


def test_values_that_a_change_of_kind_leaves_behind_are_shown_and_recorded(tiny_run, tmp_path, ludus):
    before("pretrain", tiny_run, tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "extends: tiny.yaml\npretrain:\n  steps: 1\n  optimizer: {kind: adamw, weight_decay: 0.3}\n"
    )
    child = ludus("pretrain", "mine.yaml", "optimizer.kind=muon", folder=tmp_path)
    assert child.wait() == 0, child.err
    shown = re.search(
        r"^not used: (pretrain\.optimizer\.weight_decay: 0\.3 .*mine\.yaml:4.*)$", child.out, re.MULTILINE
    )
    assert shown is not None, child.out
    assert json.loads((tmp_path / RUN / "recipe.json").read_text())["dropped"] == [shown[1]]
    printed = ludus("pretrain", "mine.yaml", "optimizer.kind=muon", "--print-config", folder=tmp_path)
    assert printed.wait() == 0
    assert f"# not used: {shown[1]}\n" in printed.out


def test_a_result_that_is_made_again_is_kept_and_said_so(tiny_run, tmp_path, ludus):
    shutil.copytree(tiny_run, tmp_path, dirs_exist_ok=True)
    child = ludus("grpo", "tiny.yaml", "steps=1", folder=tmp_path)
    assert child.wait() == 0, child.err
    shown = re.search(r"grpo; made otherwise before, which is kept in (runs/tiny/replaced/grpo-\S+)$", child.out, re.M)
    assert shown is not None, child.out
    kept = tmp_path / shown[1] / "model" / "model.safetensors"
    assert kept.read_bytes() == (tiny_run / RUN / "grpo" / "model" / "model.safetensors").read_bytes()


def typos(word: str) -> Iterator[str]:
    """Slip once: leave a letter out, double one, swap two, hit another."""
    middle = len(word) // 2
    yield word[:middle] + word[middle + 1 :]
    yield word[:middle] + word[middle] + word[middle:]
    yield word[: middle - 1] + word[middle] + word[middle - 1] + word[middle + 1 :]
    yield word[:middle] + ("x" if word[middle] != "x" else "y") + word[middle + 1 :]


def test_a_slip_in_any_key_of_any_stage_names_the_right_one():
    known = [path for path, _ in leaves(read().settings)]
    wrong, total = [], 0
    for path in known:
        section, _, key = path.rpartition(".")
        for typo in set(typos(key)) if len(key) > 3 else ():
            slipped = f"{section}.{typo}".lstrip(".")
            if slipped in known:
                continue
            total += 1
            with pytest.raises(ConfigError) as problem:
                read(f"{slipped}=1")
            line = str(problem.value).splitlines()[0]
            assert slipped in line
            assert "command line" in line
            if not re.search(rf"did you mean (\S*\.)?{key}\b", line):
                wrong.append((slipped, line))
    assert total > 200
    assert len(wrong) <= 0.05 * total, wrong[:5]


def test_help_names_every_setting():
    text = describe(Recipe, None)
    for path, _ in leaves(read().settings):
        assert path in text
