"""Chat: a conversation at a terminal and through a pipe, its commands, Ctrl-C, and what a terminal must not see."""

import builtins
import sys

import pytest

from ludus.base.errors import ConfigError
from ludus.cli import talk
from ludus.cli.chat import USAGE
from ludus.cli.commands import COMMANDS, Leave, obey
from ludus.cli.main import main
from ludus.cli.options import read
from ludus.cli.screen import Screen, clean
from ludus.generation import conversation as conversations
from ludus.text.templates import choose


@pytest.fixture
def begun(model):
    """Begin a conversation as the command line does."""
    return talk.begin(read(USAGE, [str(model), "--max-new-tokens", "4", "--seed", "1"]))


@pytest.fixture
def typing(monkeypatch):
    """Let a person type lines; an exception class among them happens while the prompt waits."""

    def put(*lines):
        waiting = list(lines)

        def answer(prompt: str) -> str:
            line = waiting.pop(0) if waiting else EOFError
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr(builtins, "input", answer)
        return waiting

    return put


def test_a_pipe_is_answered_line_by_line_and_nothing_else_is_on_standard_output(model, stdin, capsys):
    stdin("Grüße\n\n/tokens\nagain\n".encode())
    assert main(["chat", str(model), "--max-new-tokens", "5"]) == 0
    out, err = capsys.readouterr()
    assert "tokens of a context of 64" in err
    assert "> " not in out
    assert "/help" not in out + err
    assert err.count("cut off after 5 tokens; --max-new-tokens allows more") == 2
    stdin("Grüße\nagain\n".encode())
    main(["chat", str(model), "--max-new-tokens", "5"])
    assert capsys.readouterr().out == out


def test_a_line_that_cannot_be_answered_is_told_and_the_others_are(model, stdin, capsys):
    stdin(b"x" * 300 + b"\n/zzzz\nhello\n\xff\xfe broken\n")
    assert main(["chat", str(model), "--max-new-tokens", "3"]) == 2
    out, err = capsys.readouterr()
    assert out.count("\n") >= 2
    assert "ludus: the prompt is" in err
    assert "ludus: unknown command /zzzz; /help lists them" in err


def test_quit_ends_a_pipe(model, stdin, capsys):
    stdin(b"/quit\nhello\n")
    assert main(["chat", str(model)]) == 0
    assert capsys.readouterr().out == ""


def test_a_terminal_greets_answers_and_leaves_at_the_end_of_input(begun, typing, capsys):
    typing("hello", "  ", "//etc is a folder")
    assert talk.at_terminal(begun, Screen(True, False)) == 0
    shown = capsys.readouterr().out
    assert "context 64 tokens, temperature 0\n/help lists the commands; Ctrl-D leaves" in shown
    assert [message["content"] for message in begun.messages[::2]] == ["hello", "/etc is a folder"]
    assert begun.messages[1]["content"]
    assert clean(begun.messages[1]["content"]) in shown


def test_control_c_stops_the_answer_and_keeps_what_was_said(begun, typing, monkeypatch, capsys):
    drawn = [begun.speaker.tokenizer.encode("a")[0], begun.speaker.tokenizer.encode("b")[0]]

    def interrupted(*given, **more):
        yield from drawn
        raise KeyboardInterrupt

    monkeypatch.setattr(conversations, "stream", interrupted)
    rest = typing("hello", KeyboardInterrupt, "never reached")
    assert talk.at_terminal(begun, Screen(True, False)) == 0
    assert rest == ["never reached"]
    assert begun.messages[-1] == {"role": "assistant", "content": "ab"}
    assert "stopped; Ctrl-C again or Ctrl-D leaves" in capsys.readouterr().out


def test_control_c_at_the_prompt_leaves_only_when_it_comes_twice(begun, typing):
    rest = typing(KeyboardInterrupt, "hello", KeyboardInterrupt, KeyboardInterrupt, "never reached")
    assert talk.at_terminal(begun, Screen(True, False)) == 0
    assert rest == ["never reached"]
    assert begun.messages[0]["content"] == "hello"


def test_a_mistake_at_the_terminal_is_a_line_and_the_chat_goes_on(begun, typing, capsys):
    typing("/temperture 3", "/temperature hot", "x" * 300, "hello")
    assert talk.at_terminal(begun, Screen(True, False)) == 0
    shown = capsys.readouterr().out
    assert "did you mean /temperature?" in shown
    assert "/temperature expects a number from 0 to 10, got 'hot'" in shown
    assert "the model sees 64 at once" in shown
    assert len(begun.messages) == 2


def test_old_turns_are_left_out_with_a_note(begun, typing, capsys):
    typing(*[f"this is question {number}" for number in range(6)])
    talk.at_terminal(begun, Screen(True, False))
    assert "left out: the model sees 64 tokens at once" in capsys.readouterr().out


def test_a_model_that_was_only_pretrained_says_so(begun):
    object.__setattr__(begun.speaker, "stage", "pretrain")
    assert "never taught to answer" in talk.greeting(begun)


def test_commands_do_what_they_say(begun):
    assert "system message set" in obey("/system Be brief.", begun)
    assert begun.prompt("x").messages[0] == {"role": "system", "content": "Be brief."}
    assert obey("/system", begun) == "no system message"
    assert begun.system is None
    assert obey("/temperature 0.5", begun) == "temperature 0.5"
    assert begun.sampling.temperature == 0.5
    begun.messages = [{"role": "user", "content": "x"}]
    assert "a new conversation" in obey("/reset", begun)
    assert begun.messages == []
    assert all(name in obey("/help", begun) for name in COMMANDS)
    with pytest.raises(Leave):
        obey("/quit", begun)
    for bad in ("-1", "nan", "inf", "", "11"):
        with pytest.raises(ConfigError, match="expects a number from 0 to 10"):
            obey(f"/temperature {bad}", begun)


def test_tokens_are_shown_exactly_and_special_ones_cannot_be_faked(begun):
    assert obey("/tokens", begun).startswith("nothing was sent yet")
    shown = obey("/tokens <|end|> ü", begun)
    prompt = begun.prompt("<|end|> ü")
    words = shown.replace("\n", " ").split("  ")
    tokenizer = begun.speaker.tokenizer
    assert [word.strip() for word in words].count(f"{tokenizer.end} <|end|>") == 1
    assert f"{len(prompt.tokens)} tokens of a context of 64" in shown
    assert "'<'" in shown
    list(begun.ask("hello"))
    assert f"{tokenizer.bos} <|bos|>" in obey("/tokens", begun)


def test_what_a_model_says_cannot_command_the_terminal(capsys):
    hostile = "\x1b[2J\x1b]0;title\x07\r\x9b31m ok\tfine\n"
    Screen(True, False).write(hostile)
    assert capsys.readouterr().out == "␛[2J␛]0;title␇␍\ufffd31m ok\tfine\n"
    Screen(False, False).write(hostile)
    assert capsys.readouterr().out == hostile


def test_prompts_stand_out_only_in_colour():
    assert Screen(True, False).bold("> ", prompt=True) == "> "
    assert Screen(True, True).bold("> ", prompt=True) == "\x01\x1b[1m\x02> \x01\x1b[0m\x02"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["chat"], "ludus: MODEL is missing: ludus chat MODEL [options]; MODEL is a run's folder such as"),
        (["chat", "no/such/model"], "ludus: no/such/model does not exist\n"),
        (["chat", "."], "ludus: . holds no model yet"),
        (["chat", "x", "--temperature", "hot"], "ludus: --temperature expects a number from 0 to 10, got 'hot'\n"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(argv, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    told = capsys.readouterr().err
    assert told.startswith(message)
    assert told.count("\n") == 1


@pytest.mark.parametrize("verb", ["chat", "generate", "export", "explain", "resume", "sweep", "studio"])
def test_help_is_there_without_torch(verb, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main([verb, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: ludus {verb}")


@pytest.fixture(scope="module")
def adapters(model, tmp_path_factory):
    """Save two adapters for the model."""
    import torch

    from ludus.adapters import files
    from ludus.adapters.apply import apply
    from ludus.adapters.settings import LoraSettings
    from ludus.model import exchange

    made = []
    for seed in (1, 2):
        adapted = apply(exchange.load(model), LoraSettings(rank=2), seed=seed)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.normal_()
        made.append(tmp_path_factory.mktemp("adapters") / f"tuned-{seed}")
        files.save(adapted, made[-1], base=str(model))
    return made


def test_adapters_are_switched_while_talking_and_who_speaks_is_said(model, adapters, stdin, capsys):
    stdin(b"hi\n/reset\n/adapter zwei\nhi\n/reset\n/adapter off\nhi\n/adapter\n/adapter zwi\n")
    argv = ["chat", str(model), "--max-new-tokens", "5", "--adapter", str(adapters[0])]
    assert main([*argv, "--adapter", f"zwei={adapters[1]}"]) == 2
    out, err = capsys.readouterr()
    assert f"the adapter tuned-1 speaks, on {model}; /adapter NAME changes to another of tuned-1, zwei" in err
    assert "zwei speaks\n" in err
    assert "the bare model speaks\n" in err
    assert f"  tuned-1  {adapters[0]}\n  zwei  {adapters[1]}\n* off  the bare model, {model}\n" in err
    assert "ludus: there is no adapter zwi; known are tuned-1, zwei; did you mean zwei?\n" in err
    alone = []
    for place in (adapters[0], adapters[1], model):
        stdin(b"hi\n")
        assert main(["chat", str(place), "--max-new-tokens", "5"]) == 0
        alone.append(capsys.readouterr().out)
    assert out == "".join(alone)
    assert len(set(alone)) == 3


def test_without_adapters_there_is_nothing_to_switch(begun):
    assert "--adapter FOLDER` puts one on the model" in obey("/adapter", begun)
    assert "--adapter FOLDER` puts one on the model" in obey("/adapter x", begun)


def test_a_model_without_a_template_says_so_and_which_one_it_gets(begun):
    object.__setattr__(begun.speaker, "borrowed", True)
    object.__setattr__(begun.speaker, "tokenizer", choose(begun.speaker.tokenizer, "alpaca"))
    shown = talk.greeting(begun)
    assert "this model has no chat template: it continues text (ludus generate)" in shown
    assert "what you write is put into the template alpaca (### Instruction: ... ### Response:" in shown


def test_weights_are_loaded_in_the_type_and_form_that_is_asked_for(model):
    from ludus.adapters.quantised import Quantised

    begun = talk.begin(read(USAGE, [str(model), "--dtype", "bfloat16", "--quantise", "nf4"]))
    layers = [module for module in begun.speaker.model.modules() if isinstance(module, Quantised)]
    assert len(layers) >= 7
    assert str(begun.speaker.model.embed_tokens.weight.dtype) == "torch.bfloat16"
    for wrong, message in [("--dtype", "known are float32, bfloat16, as-stored"), ("--quantise", "none, nf4, int8")]:
        with pytest.raises(ConfigError, match=message):
            read(USAGE, [str(model), wrong, "fp4"])
