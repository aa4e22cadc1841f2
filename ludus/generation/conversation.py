"""Talking with a model: prompts that fit its context, answers as they are drawn, and a history that is kept.

The terminal and the studio share this; what a conversation becomes as tokens is decided in `text/chat.py`, how tokens
are drawn in `engine.py`. The one idea: a history is cut by whole turns and never in silence, and text is only given
out once its bytes are complete.
"""

import codecs
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from ludus.base.errors import DataError
from ludus.generation.engine import Sampling, stream
from ludus.generation.speaker import Speaker
from ludus.generation.voices import Voices
from ludus.text.chat import Message, render
from ludus.text.tokenizer import Tokenizer

COLDEST = 1e-4  # a temperature below means 0: dividing by less would overflow
ROOM = 4  # a history is cut until this part of the context, or all that may be answered, is free for the answer


@dataclass(frozen=True)
class Prompt:
    """What is sent: the tokens, how many may follow them, the messages they stand for, and what was left out."""

    tokens: list[int]
    max_new_tokens: int
    messages: list[Message] = field(default_factory=list)
    dropped_turns: int = 0
    dropped_tokens: int = 0


def chat_prompt(speaker: Speaker, messages: Sequence[Message], max_new_tokens: int, *, cut: bool = True) -> Prompt:
    """Render a conversation that ends with the user's turn; with `cut`, without the oldest turns that do not fit.

    A system message at the beginning and the last turn always stay. Raises DataError if those alone do not fit, if
    anything does not fit without `cut`, or if the messages are no conversation.
    """
    if messages and isinstance(messages[-1], Mapping) and messages[-1].get("role") == "assistant":
        raise DataError("the last message is the assistant's; a conversation to be answered ends with the user's")
    tokens = render(speaker.tokenizer, messages, generation_prompt=True).tokens
    opening, turns = split_turns(messages)
    dropped = 0
    wanted = speaker.context - min(max_new_tokens, speaker.context // ROOM)
    while cut and len(tokens) > wanted and dropped < len(turns) - 1:
        dropped += 1
        kept = [*opening, *(message for turn in turns[dropped:] for message in turn)]
        tokens = render(speaker.tokenizer, kept, generation_prompt=True).tokens
    messages = [*opening, *(message for turn in turns[dropped:] for message in turn)]
    return Prompt(tokens, room_after(tokens, speaker.context, max_new_tokens), messages, dropped)


def text_prompt(speaker: Speaker, text: str, max_new_tokens: int) -> Prompt:
    """Return the beginning of a document, to be continued through a sliding window, as far as one likes.

    Of a beginning longer than the context the end is kept, which is all that the model could see.
    """
    tokens = [speaker.tokenizer.bos, *speaker.tokenizer.encode(text)]
    kept = tokens[-speaker.context :]
    return Prompt(kept, max_new_tokens, dropped_tokens=len(tokens) - len(kept))


def sampling(max_new_tokens: int, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Sampling:
    """Return how to draw; where to stop is the speaker's to say."""
    return Sampling(max_new_tokens, temperature=0.0 if temperature < COLDEST else temperature, top_k=top_k, top_p=top_p)


def limited(speaker: Speaker, prompt: Prompt, wanted: Sampling) -> Sampling:
    """Return how to draw after this prompt: with the speaker's stops, and no longer than there is room."""
    return replace(wanted, max_new_tokens=prompt.max_new_tokens, stop=speaker.stops)


def room_after(tokens: list[int], context: int, max_new_tokens: int) -> int:
    """Return how many tokens may follow. Raises DataError if none may."""
    if len(tokens) >= context:
        raise DataError(
            f"the prompt is {len(tokens):,} tokens long and the model sees {context:,} at once, its answer included; "
            f"shorten it by at least {len(tokens) - context + 1:,} tokens"
        )
    return min(max_new_tokens, context - len(tokens))


def split_turns(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """Return the system messages at the beginning, and the turns after them; each turn begins with the user."""
    opening: list[Message] = []
    turns: list[list[Message]] = []
    for message in messages:
        if not turns and message["role"] == "system":
            opening.append(message)
        elif not turns or message["role"] == "user":
            turns.append([message])
        else:
            turns[-1].append(message)
    return opening, turns


class Answer:
    """An answer while it is drawn: iterate once for its text, piece by piece; then it knows how it went.

    Left early, it keeps what was given out so far. `finish` is "length" unless the model ended its turn.
    """

    def __init__(
        self, speaker: Speaker, prompt: Prompt, wanted: Sampling, generator: torch.Generator | None = None
    ) -> None:
        self.prompt = prompt
        self.tokens: list[int] = []
        self.text = ""
        self.finish: Literal["stop", "length"] = "length"
        self._tokenizer = speaker.tokenizer
        self._sampling = limited(speaker, prompt, wanted)
        self._drawn = stream(speaker.model, prompt.tokens, self._sampling, generator=generator)

    def __iter__(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in self._drawn:
            self.tokens.append(token)
            if token in self._sampling.stop:
                self.finish = "stop"
                break
            first = len(self.tokens) == 1 and self.prompt.tokens == [self._tokenizer.bos]
            yield from self._given(decoder.decode(token_bytes(self._tokenizer, token, beginning=first)))
        yield from self._given(decoder.decode(b"", final=True))

    def _given(self, piece: str) -> Iterator[str]:
        self.text += piece
        if piece:
            yield piece


def token_bytes(tokenizer: Tokenizer, token: int, *, beginning: bool = False) -> bytes:
    """Return a token's bytes; none for a special one, or one that only pads the model's vocabulary.

    At the `beginning` of a text without the space that SentencePiece puts there.
    """
    return tokenizer.decode_bytes([token], beginning=beginning) if token < tokenizer.vocabulary_size else b""


@dataclass
class Conversation:
    """A history, and how it goes on. `sent` is the last prompt; `messages` are the turns, without the system's.

    `voices` are those that may take over from the `speaker`, with the history that there is.
    """

    speaker: Speaker
    sampling: Sampling
    generator: torch.Generator
    system: str | None = None
    messages: list[Message] = field(default_factory=list)
    sent: Prompt | None = None
    voices: Voices | None = None

    def hear(self, name: str | None) -> None:
        """Let an adapter speak from now on, or with None the bare model. Raises ConfigError for an unknown name."""
        if self.voices is not None:
            self.speaker = self.voices.use(name)

    def prompt(self, text: str) -> Prompt:
        """Return what would be sent if `text` came next."""
        opening: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*opening, *self.messages, {"role": "user", "content": text}]
        return chat_prompt(self.speaker, messages, self.sampling.max_new_tokens)

    def ask(self, text: str) -> Answer:
        """Say something and return the answer, to be read and then kept. Raises DataError if it does not fit."""
        self.sent = self.prompt(text)
        return Answer(self.speaker, self.sent, self.sampling, self.generator)

    def keep(self, answer: Answer) -> bool:
        """Take a turn into the history, as it was sent and as far as it was answered; a blank answer is left out."""
        kept = [message for message in answer.prompt.messages if message["role"] != "system"]
        if not answer.text.strip():
            self.messages = kept[:-1]
            return False
        self.messages = [*kept, {"role": "assistant", "content": answer.text}]
        return True
