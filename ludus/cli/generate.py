"""`ludus generate`: complete a prompt, for scripts. The text alone goes to standard output."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ludus.base.errors import ConfigError, DataError
from ludus.cli.chat import LARGEST_SEED, LENGTH, LOADING, MODEL, SAMPLING, TEMPERATURE
from ludus.cli.options import Given, Option, Usage, read

if TYPE_CHECKING:
    from ludus.generation.conversation import Prompt
    from ludus.generation.speaker import Speaker

RAW_TEMPERATURE, CHAT_TEMPERATURE = 0.8, 0.0
AT_A_TIME = 64  # samples drawn together
USAGE = Usage(
    "generate",
    "Complete a prompt",
    (MODEL,),
    1,
    (
        Option("--prompt", "the beginning, or with --chat the message; - reads standard input", str, "TEXT"),
        Option("--chat", "take the prompt as a message to answer, not as text to go on with"),
        Option("--system", "a system message; with --chat", str, "TEXT"),
        LENGTH,
        TEMPERATURE._replace(
            doc=f"{TEMPERATURE.doc}; default {RAW_TEMPERATURE}, with --chat {CHAT_TEMPERATURE:g}", default=None
        ),
        *SAMPLING,
        Option("--seed", "of what is drawn", int, "S", 0, 0, LARGEST_SEED),
        Option("--samples", "how many to draw; only --json tells several apart for sure", int, "N", 1, 1),
        LOADING[0]._replace(doc="an adapter for it, to speak with"),
        *LOADING[1:],
        Option("--json", "one JSON object a line and sample: prompt, text, tokens, finish (stop or length)"),
    ),
    "Text longer than the model's context is continued through a sliding window; an answer with --chat ends there.\n"
    "One newline at the end of standard input is left out. The same command gives the same text.",
)


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    given = read(USAGE, argv)
    if given is None:
        return 0
    text = prompt_text(given)
    if len(given["adapter"]) > 1:
        raise ConfigError("--adapter is given more than once, and one text has one speaker; give one")
    from ludus.cli.screen import Screen
    from ludus.cli.talk import load

    screen = Screen.of_process(os.environ)
    voices = load(given)
    speaker = voices.current
    prompt = prompt_of(speaker, text, given)
    who = [f"the adapter {voices.shelf.current} speaks"] if given["adapter"] else []
    for remark in [*who, *voices.notes, *remarks(prompt, given, speaker.context)]:
        print(f"ludus: {remark}", file=sys.stderr)
    write = (lambda piece: None) if given["json"] else screen.write
    for record in samples(speaker, prompt, given, write):
        if given["json"]:
            print(json.dumps({"prompt": text, **record}), flush=True)
    return 0


def prompt_text(given: Given) -> str:
    """Return the prompt. Raises ConfigError if there is none, DataError if it is no text."""
    if given["system"] and not given["chat"]:
        raise ConfigError("--system is for a conversation; add --chat")
    if given["prompt"] is None:
        raise ConfigError("--prompt is missing: give --prompt TEXT, or --prompt - to read standard input")
    if given["prompt"] != "-":
        return given["prompt"]
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is not UTF-8 text (byte {error.start:,}); convert it first") from None


def prompt_of(speaker: "Speaker", text: str, given: Given) -> "Prompt":
    """Return what is sent: a conversation, or the beginning of a document."""
    from ludus.generation.conversation import chat_prompt, text_prompt

    if not given["chat"]:
        return text_prompt(speaker, text, given["max-new-tokens"])
    opening = [{"role": "system", "content": given["system"]}] if given["system"] else []
    return chat_prompt(speaker, [*opening, {"role": "user", "content": text}], given["max-new-tokens"])


def remarks(prompt: "Prompt", given: Given, context: int) -> Iterator[str]:
    """Say what is done otherwise than asked."""
    asked = given["max-new-tokens"]
    if asked > prompt.max_new_tokens and asked != LENGTH.default:
        yield f"the context of {context:,} tokens has room for {prompt.max_new_tokens:,} more, not for {asked:,}"
    if prompt.dropped_tokens:
        yield f"the model sees {context:,} tokens at once; the prompt's first {prompt.dropped_tokens:,} are left out"


def samples(
    speaker: "Speaker", prompt: "Prompt", given: Given, write: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Write and yield the samples; one alone is written as it is drawn, several in groups."""
    import torch

    from ludus.generation.conversation import Answer, limited, sampling
    from ludus.generation.engine import generate

    temperature = given["temperature"]
    if temperature is None:
        temperature = CHAT_TEMPERATURE if given["chat"] else RAW_TEMPERATURE
    generator = torch.Generator().manual_seed(given["seed"])
    wanted = sampling(prompt.max_new_tokens, temperature, given["top-k"], given["top-p"])
    if given["samples"] == 1:
        answer = Answer(speaker, prompt, wanted, generator)
        for piece in answer:
            write(piece)
        write("\n")
        yield {"text": answer.text, "tokens": answer.tokens, "finish": answer.finish}
        return
    wanted = limited(speaker, prompt, wanted)
    for start in range(0, given["samples"], AT_A_TIME):
        group = min(AT_A_TIME, given["samples"] - start)
        for completion in generate(speaker.model, [prompt.tokens], wanted, generator=generator, group=group):
            text = completion.text(speaker.tokenizer, beginning=prompt.tokens == [speaker.tokenizer.bos])
            write(f"{text}\n")
            yield {"text": text, "tokens": completion.tokens, "finish": completion.finish}
