"""Every customary form of conversations and preferences is found by itself, and nothing is dropped in silence."""

import csv
import gzip
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from ludus.base.errors import DataError, NetworkError
from ludus.text.conversations import read_chats, read_conversations, read_pairs, read_preferences

SHARED = Path(__file__).parents[3] / "shared" / "data"
SYSTEM, USER, ASSISTANT = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Hello."},
)
CHAT = [USER, ASSISTANT]
WORSE = [USER, {"role": "assistant", "content": "What?"}]


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


@pytest.mark.parametrize(
    ("record", "form", "expected"),
    [
        ({"messages": CHAT}, "messages", CHAT),
        ({"messages": CHAT, "system": "Be brief."}, "messages", [SYSTEM, *CHAT]),
        ({"messages": [USER, {**ASSISTANT, "weight": 1}]}, "messages", CHAT),
        ({"conversations": [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}]}, "sharegpt", CHAT),
        (
            {
                "conversations": [
                    {"from": "system", "value": "Be brief."},
                    {"from": "User", "value": "Hi."},
                    {"from": "chatgpt", "value": "Hello."},
                ]
            },
            "sharegpt",
            [SYSTEM, *CHAT],
        ),
        ({"conversation": CHAT}, "sharegpt", CHAT),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi."}]}, ASSISTANT]}, "messages", CHAT),
        ({"instruction": "Hi.", "input": "", "output": "Hello."}, "alpaca", CHAT),
        ({"instruction": "Hi.", "context": None, "response": "Hello."}, "alpaca", CHAT),
        (
            {"instruction": "Add.", "input": "1 and 2", "output": "3"},
            "alpaca",
            [{"role": "user", "content": "Add.\n\n1 and 2"}, {"role": "assistant", "content": "3"}],
        ),
        ({"prompt": "Hi.", "completion": "Hello."}, "prompt-completion", CHAT),
        ({"prompt": [SYSTEM, USER], "completion": [ASSISTANT]}, "prompt-completion", [SYSTEM, *CHAT]),
        ({"prompt": "Hi.", "response": "Hello."}, "prompt-completion", CHAT),
        ({"instruction": "Hi.", "instances": [{"input": "", "output": "Hello."}]}, "self-instruct", CHAT),
        ({"question": "Hi.", "answer": "Hello."}, "question-answer", CHAT),
    ],
)
def test_a_form_is_seen_from_its_columns(tmp_path, record, form, expected):
    found = read_chats(lines(tmp_path / "x.jsonl", record))
    assert found.format == form
    assert [dict(message) for message in found.chats[0].messages] == expected
    assert found.chats[0].place == f"{tmp_path / 'x.jsonl'}:1"
    assert not found.left_out


def test_plain_text_comes_as_rows_or_as_a_file(tmp_path):
    found = read_chats(lines(tmp_path / "x.jsonl", {"text": "Once.", "url": "u"}, {"text": "Twice."}))
    assert [chat.text for chat in found.chats] == ["Once.", "Twice."]
    assert (found.format, found.unread) == ("text", Counter(url=1))
    (tmp_path / "y.txt").write_text("All of it.\n\nHere.")
    assert [chat.text for chat in read_chats(tmp_path / "y.txt").chats] == ["All of it.\n\nHere."]


def test_the_same_rows_are_read_from_every_kind_of_file(tmp_path):
    rows = [
        {"instruction": "Hi.", "input": "", "output": "Hello."},
        {"instruction": "Grüß", "input": 'x,"y"\n', "output": "Ja."},
    ]
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.json").write_text(json.dumps({"version": 2, "data": rows}, indent=1))
    lines(tmp_path / "c.jsonl", *rows)
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress((tmp_path / "c.jsonl").read_bytes()))
    with (tmp_path / "e.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["instruction", "input", "output"])
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "f.parquet")
    lines(tmp_path / "g.json", *rows)  # lines under the name of a list
    (tmp_path / "h.jsonl").write_text(json.dumps(rows, indent=1))  # a list under the name of lines
    expected = read_conversations(tmp_path / "c.jsonl")
    assert expected[1][0]["content"] == 'Grüß\n\nx,"y"\n'
    for file in sorted(tmp_path.iterdir()):
        assert read_conversations(file) == expected, file.name
    assert len(read_chats(tmp_path).chats) == 16


def test_messages_in_parquet_and_csv_are_lists_or_json(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"messages": [{**USER, "name": None}, ASSISTANT]}]), tmp_path / "x.parquet"
    )
    assert [list(map(dict, one)) for one in read_conversations(tmp_path / "x.parquet")] == [CHAT]
    with (tmp_path / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["messages", "weight"], [json.dumps(CHAT), "0.5"]])
    [chat] = read_chats(tmp_path / "x.csv").chats
    assert (chat.messages, chat.weight) == (CHAT, 0.5)


def test_weights_of_rows_and_messages_are_kept(tmp_path):
    first, last = {"role": "assistant", "content": "One."}, {"role": "assistant", "content": "Two."}
    path = lines(
        tmp_path / "x.jsonl",
        {"messages": [USER, {**first, "weight": 0}, USER, {**last, "weight": 1}], "weight": 2.5},
        {"messages": [USER, {**first, "train": False}, USER, {**last, "train": True}]},
    )
    one, two = read_chats(path).chats
    assert [message.get("weight", 1) for message in one.messages] == [1, 0, 1, 1]
    assert [message.get("weight", 1) for message in two.messages] == [1, 0, 1, 1]
    assert (one.weight, two.weight) == (2.5, 1.0)


def test_what_cannot_be_learned_from_is_left_out_under_its_reason(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    path = lines(
        tmp_path / "x.jsonl",
        {"messages": CHAT},
        {"messages": [USER, {"role": "assistant", "content": " "}]},
        {"messages": [USER, call]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ASSISTANT]},
        {"messages": [USER]},
        {"messages": [USER, {**ASSISTANT, "weight": 0}]},
        {"messages": CHAT, "weight": 0},
        {"text": " "},
        {"instruction": "x", "instances": [{"input": "", "output": ""}, {"input": "", "output": "y"}]},
        {"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": "{}"}]},
    )
    found = read_chats(path)
    assert len(found.chats) == 2
    assert found.left_out == Counter(
        {
            "has an empty answer": 2,
            "holds a call of a tool": 2,
            "holds something else than text": 1,
            "without an answer to learn": 2,
            "has weight 0": 1,
            "has an empty text": 1,
        }
    )
    with pytest.raises(DataError, match=r"holds nothing to learn from: 1 has weight 0$"):
        read_chats(lines(tmp_path / "y.jsonl", {"messages": CHAT, "weight": 0}))


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (
            {"a": 1, "b": 2},
            r"expected messages, or prompt and completion; it has a, b\. Known are: messages \(messages\)",
        ),
        ({"prompt": "x", "chosen": "y", "rejected": "z"}, "it holds preferences"),
        ({"messages": CHAT, "weight": -1}, "its weight is -1; expected a number from 0"),
        ({"messages": CHAT, "weight": "much"}, "its weight is 'much'"),
        ({"messages": [USER, {**ASSISTANT, "train": "no"}]}, "message 2 of 2: its train is 'no'"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "unknown role 'alien'"),
        ({"text": 3}, "its text is a int"),
        ({"instruction": 3, "output": "x"}, "its instruction is a int"),
        ({"instruction": "x", "instances": {}}, "instances must be a list"),
    ],
)
def test_a_row_that_is_none_is_named_with_its_line(tmp_path, record, says):
    path = lines(tmp_path / "x.jsonl", {"messages": CHAT}, record)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}:2: .*{says}") as problem:
        read_chats(path)
    assert "\n" not in str(problem.value)


def test_a_format_may_be_named(tmp_path):
    path = lines(tmp_path / "x.jsonl", {"text": "t", "question": "Hi.", "answer": "Hello."})
    assert read_chats(path, format="text").chats[0].text == "t"
    assert read_chats(path, format="question-answer").chats[0].messages == CHAT
    with pytest.raises(DataError, match=r"expected instruction for format alpaca; it has text, question, answer"):
        read_chats(path, format="alpaca")
    with pytest.raises(DataError, match=r"unknown format 'alpace'; did you mean 'alpaca'\? There are: auto, messages"):
        read_chats(path, format="alpace")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.json", "[1, 2]", "entry 1: expected an object"),
        ("x.json", '{"a": [{"x": 1}], "b": [{"y": 1}]}', "holds several lists: a, b"),
        ("x.json", '"word"', "holds a str; expected a list of objects"),
        ("x.json", "[{]", ":1: not JSON"),
        ("x.csv", "text\na,b\n", ":2: more cells than the header"),
        ("x.parquet", "no", "is not a Parquet file"),
        ("x.jsonl.gz", "no", "cannot be read as text"),
        ("x.jsonl", '{"messages": []}\n{', ":2: not JSON|the conversation has no messages"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=says) as problem:
        read_chats(tmp_path / name)
    assert "\n" not in str(problem.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no file that can be read"):
        read_chats(tmp_path / "empty")


def test_a_data_set_of_the_hub_that_cannot_be_fetched_says_what_to_do():
    with pytest.raises((NetworkError, DataError), match=r"data set nobody/nothing.*data=FILE"):
        read_chats("nobody/nothing")
    with pytest.raises(DataError, match="cannot be read as text"):
        read_chats("nobody/nothing.jsonl")


def test_a_data_set_of_the_hub_is_read_from_its_training_files(tmp_path, monkeypatch):
    import huggingface_hub

    lines(tmp_path / "a.jsonl", {"prompt": "Hi.", "completion": "Hello."})
    names = ["README.md", "data/train-0.jsonl", "data/test-0.jsonl"]
    siblings = [type("Sibling", (), {"rfilename": name})() for name in names]
    about = type("About", (), {"siblings": siblings, "card_data": None, "sha": "abc"})()
    fetched = []

    class Hub:
        def dataset_info(self, name, revision):
            assert (name, revision) == ("some/body", "v1")
            return about

    def download(name, file, repo_type, revision):
        fetched.append((file, revision))
        return str(tmp_path / "a.jsonl")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert [chat.messages for chat in read_chats("some/body@v1").chats] == [CHAT]
    assert fetched == [("data/train-0.jsonl", "abc")]


@pytest.mark.parametrize(
    ("record", "form", "expected"),
    [
        ({"prompt": "Hi.", "chosen": "Hello.", "rejected": "What?"}, "explicit prompt", (CHAT, WORSE)),
        ({"prompt": "Hi.", "chosen": CHAT, "rejected": WORSE, "score_chosen": 9}, "explicit prompt", (CHAT, WORSE)),
        ({"prompt": [USER], "chosen": CHAT, "rejected": WORSE}, "explicit prompt", (CHAT, WORSE)),
        ({"chosen": CHAT, "rejected": WORSE}, "implicit prompt", (CHAT, WORSE)),
        (
            {
                "input": {"messages": [USER], "tools": []},
                "preferred_output": [ASSISTANT],
                "non_preferred_output": WORSE[1:],
            },
            "openai",
            (CHAT, WORSE),
        ),
        (
            {"chosen": "\n\nHuman: Hi.\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi.\n\nAssistant: What?"},
            "transcript",
            (CHAT, WORSE),
        ),
        (
            {"prompt": "\n\nHuman: Hi.\n\nAssistant:", "chosen": "Hello.", "rejected": "What?"},
            "explicit prompt",
            (CHAT, WORSE),
        ),
    ],
)
def test_preferences_of_every_form_become_two_conversations(tmp_path, record, form, expected):
    found = read_pairs(lines(tmp_path / "x.jsonl", record))
    assert (found.format, found.pairs) == (form, [expected])
    assert read_preferences(tmp_path / "x.jsonl") == [expected]


def test_preferences_that_prefer_nothing_are_counted(tmp_path, capsys):
    path = lines(
        tmp_path / "x.jsonl",
        {"prompt": "Hi.", "chosen": "Hello.", "rejected": "What?"},
        {"prompt": "Hi.", "chosen": "Same.", "rejected": "Same."},
        {"chosen": CHAT, "rejected": [{"role": "user", "content": "Other?"}, ASSISTANT]},
        {"chosen": [*CHAT, USER], "rejected": WORSE},
    )
    assert len(read_preferences(path)) == 1
    assert "left out of 4 preferences: 1 prefers an answer to itself" in capsys.readouterr().out
    with pytest.raises(DataError, match="holds no preferences to learn from: 1 prefers"):
        read_pairs(lines(tmp_path / "y.jsonl", {"prompt": "Hi.", "chosen": "Same.", "rejected": "Same."}))


REAL = {
    "instructions/fastchat_dummy_conversation.json": "sharegpt",
    "instructions/gpteacher_roleplay.json": "alpaca",
    "instructions/self_instruct_seed_tasks.jsonl": "self-instruct",
    "instructions/user_oriented_instructions.jsonl": "self-instruct",
    "gsm8k/train.jsonl": "question-answer",
    "text/tinyshakespeare.txt": "text",
}


@pytest.mark.parametrize("name", REAL)
def test_real_data_is_read_whole(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not there")
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        rows = len(json.loads(content))
    else:
        rows = 1 if path.suffix == ".txt" else len(content.splitlines())
    found = read_chats(path)
    assert found.format == REAL[name]
    assert len(found.chats) + found.left_out.total() == rows  # each of the seed tasks has one instance
    assert not found.left_out


def test_real_preferences_are_read_whole():
    path = SHARED / "hh-rlhf/harmless-base-test.jsonl.gz"
    if not path.exists():
        pytest.skip("hh-rlhf is not there")
    found = read_pairs(path)
    assert found.format == "transcript"
    assert len(found.pairs) + found.left_out.total() == 2312
    assert found.left_out == Counter({"has an empty answer": 4})
    assert all(chosen[:-1] == rejected[:-1] or chosen[0] == rejected[0] for chosen, rejected in found.pairs)
