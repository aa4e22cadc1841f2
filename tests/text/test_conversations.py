import json
import re
from pathlib import Path

import pytest

from ludus.base.errors import DataError
from ludus.text.conversations import read_conversations, read_preferences

USER, ASSISTANT = {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}
CHAT = [USER, ASSISTANT]


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in records))
    return path


def test_both_forms_of_a_conversation_are_read_in_order(tmp_path):
    path = lines(tmp_path / "x", {"messages": CHAT}, "", {"prompt": "Hi.", "completion": "Hello."}, "  ")
    assert read_conversations(path) == [CHAT, CHAT]


def test_prompt_and_completion_may_be_messages_and_other_keys_do_not_matter(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    path = lines(tmp_path / "x", {"id": 7, "prompt": [system, USER], "completion": [ASSISTANT], "source": "me"})
    assert read_conversations(str(path)) == [[system, *CHAT]]


def test_preferences_share_their_prompt(tmp_path):
    worse = {"role": "assistant", "content": "What?"}
    path = lines(
        tmp_path / "x",
        {"prompt": "Hi.", "chosen": "Hello.", "rejected": "What?"},
        {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [worse]},
    )
    assert read_preferences(path) == [(CHAT, [USER, worse])] * 2


def test_a_path_in_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    lines(tmp_path / "x.jsonl", {"messages": CHAT})
    assert read_conversations("~/x.jsonl") == [CHAT]


def test_text_of_any_script_and_line_ends_within_it_survive(tmp_path):
    content = "Grüße, 🦉\n\u2028und\u0085mehr\x0c"
    path = tmp_path / "x"
    record = {"messages": [{"role": "user", "content": content}, ASSISTANT]}
    path.write_text("\ufeff" + json.dumps(record, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert read_conversations(path)[0][0]["content"] == content


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ("{", "not JSON; expected one object on each line"),
        ("[1]", "expected an object, got a list"),
        ({}, "expected messages, or prompt and completion; it has nothing"),
        ({"text": "a", "title": "b"}, "expected messages, or prompt and completion; it has text, title"),
        ({"messages": "Hi."}, "messages must be a list of objects with role and content"),
        ({"messages": []}, "the conversation has no messages; it needs at least one"),
        ({"messages": ["Hi."]}, "message 1 of 1: is a str; a message is an object with `role` and `content`"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "message 1 of 1: unknown role 'bot'; known are"),
        ({"messages": [USER, {"role": "assistant", "content": 3}]}, "message 2 of 2: its content is a int; only text"),
        (
            {"messages": [USER, {"role": "assistant", "content": " "}]},
            "message 2 of 2: the assistant's content is empty",
        ),
        ({"messages": [{**USER, "name": "Ann"}]}, "message 1 of 1: unknown key 'name'"),
        ({"prompt": 3, "completion": "x"}, "prompt and answer must be text or lists of messages"),
        ({"prompt": "x"}, "expected messages, or prompt and completion; it has prompt"),
    ],
)
def test_the_line_that_is_no_conversation_is_named(tmp_path, record, says):
    path = lines(tmp_path / "x.jsonl", {"messages": CHAT}, "", record)
    with pytest.raises(DataError, match=rf"^{re.escape(f'{path}:3: {says}')}") as problem:
        read_conversations(path)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("missing", ["prompt", "chosen", "rejected"])
def test_a_preference_without_one_of_its_parts_is_named(tmp_path, missing):
    record = {"prompt": "a", "chosen": "b", "rejected": "c"}
    del record[missing]
    path = lines(tmp_path / "x.jsonl", record)
    with pytest.raises(DataError, match=rf":1: a preference needs prompt, chosen and rejected; {missing} is missing$"):
        read_preferences(path)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\xfd", None])
def test_a_file_without_lines_of_text_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "x.jsonl").write_bytes(content)
    for read in (read_conversations, read_preferences):
        with pytest.raises(DataError, match=r"x\.jsonl (is empty|cannot be read as text)") as problem:
            read(tmp_path / "x.jsonl")
        assert "\n" not in str(problem.value)
