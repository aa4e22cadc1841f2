"""What is wrong with data before it is learned from: a count for each kind of trouble, with where it was first seen.

All texts are encoded once and together, so a hundred thousand conversations take seconds. What makes an example
useless (nothing learned in it, longer than the context) is fatal where it is all of them, and counted otherwise.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from ludus.base.errors import DataError
from ludus.text.chat import Learn
from ludus.text.examples import rendered, unfit
from ludus.text.formats import Chat
from ludus.text.tokenizer import Tokenizer

# What looks like another model's special token; in a content it is text, and is learned as text.
LOOKS_SPECIAL = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|begin_of_text|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<s>",
    "</s>",
    "<bos>",
    "<eos>",
    "### Response:",
    "### Instruction:",
    "\n\nHuman:",
    "\n\nAssistant:",
)
AT_A_TIME = 20_000  # conversations that are encoded together
BAR = 40  # characters of the longest bar of a histogram


@dataclass
class Findings:
    """Counts by trouble, the first place of each, and what the lengths are. `fatal` says why nothing can be learned."""

    conversations: int = 0
    turns: int = 0
    tokens: int = 0
    learned: int = 0
    weights: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, str] = field(default_factory=dict)
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    context: int = 0
    fatal: list[str] = field(default_factory=list)

    @property
    def bins(self) -> list[tuple[int, int, int]]:
        """Return how many examples have from how many to how many tokens, in powers of two."""
        return list(_bins(self.lengths))

    @property
    def histogram(self) -> list[str]:
        """Return the bins as lines with bars."""
        most = max((count for _, _, count in self.bins), default=1)
        return [
            f"{low:>7,} to {high:>7,} tokens  {count:>9,}  {'█' * -(-BAR * count // most)}"
            + ("  longer than the context" if low > self.context + 1 else "")
            for low, high, count in self.bins
        ]

    @property
    def lines(self) -> list[str]:
        """Return what was found in plain lines, the gravest first."""
        share = self.learned / self.tokens if self.tokens else 0.0
        found = [
            f"{self.conversations:,} examples, {self.turns:,} messages, {self.tokens:,} tokens, "
            f"{self.learned:,} of them learned ({share:.1%})"
        ]
        found += ["some examples weigh more than others"] if self.weights else []
        found += [f"FATAL: {reason}" for reason in self.fatal]
        for trouble, count in self.counts.most_common():
            where = f" (first: {self.places[trouble]})" if self.places.get(trouble) else ""
            found.append(f"{count:,} {trouble}{where}")
        return found

    def uphold(self) -> None:
        """Raise `DataError` with the first fatal finding, if there is one."""
        if self.fatal:
            raise DataError(self.fatal[0])

    def note(self, trouble: str, place: str) -> None:
        """Count a trouble."""
        self.counts[trouble] += 1
        self.places.setdefault(trouble, place)


def examine(
    chats: Sequence[Chat],
    tokenizer: Tokenizer,
    *,
    context: int,
    learn: Learn = "all",
    validation: Sequence[Chat] | None = None,
) -> Findings:
    """Look through conversations and texts as they would be trained on; with `validation`, for what is in both."""
    found = Findings(conversations=len(chats), context=context, weights=len({chat.weight for chat in chats}) > 1)
    found.turns = sum(len(chat.messages) for chat in chats)
    looks = tuple(dict.fromkeys((*tokenizer.special_ids, *LOOKS_SPECIAL)))
    for chat in chats:
        for trouble in _of_chat(chat, looks):
            found.note(trouble, chat.place)
    _duplicates(chats, found)
    if validation is not None:
        _leaks(chats, validation, found)
    _lengths(chats, tokenizer, found, learn)
    return found


def _of_chat(chat: Chat, looks: Sequence[str]) -> Iterator[str]:
    contents = [chat.text] if chat.text is not None else [message["content"] for message in chat.messages]
    if any("<" in text or "[" in text or "#" in text or "\n\n" in text for text in contents) and any(
        token in text for text in contents for token in looks
    ):
        yield "hold what looks like a special token or a template's words; it is encoded as text"
    if chat.text is None:
        yield from _of_order([message["role"] for message in chat.messages])
        if any(not message["content"].strip() for message in chat.messages):
            yield "hold an empty turn"


def _of_order(roles: Sequence[str]) -> Iterator[str]:
    """Yield what is unusual about the order of roles."""
    if any(role in ("system", "developer") for role in roles[1:]):
        yield "have a system message that is not the first"
    turns = [role for role in roles if role not in ("system", "developer")]
    if turns and turns[0] == "assistant":
        yield "begin with the assistant, so that the answer follows no question"
    if any(a == b and a != "tool" for a, b in pairwise(turns)):
        yield "have two turns of one role in a row"
    if turns and turns[-1] != "assistant":
        yield "end without an answer"


def _prompt(chat: Chat) -> tuple[tuple[str, str], ...]:
    """Return what comes before the first answer; of a text, the whole."""
    if chat.text is not None:
        return (("", chat.text),)
    roles = [message["role"] for message in chat.messages]
    end = roles.index("assistant") if "assistant" in roles else len(roles)
    return tuple((message["role"], message["content"].strip()) for message in chat.messages[:end])


def _whole(chat: Chat) -> tuple[tuple[str, str], ...]:
    if chat.text is not None:
        return (("", chat.text),)
    return tuple((message["role"], message["content"].strip()) for message in chat.messages)


def _duplicates(chats: Sequence[Chat], found: Findings) -> None:
    """Count what was there before: the whole of it, or the prompt with another answer."""
    seen: dict[int, set[int]] = defaultdict(set)
    for chat in chats:
        prompt, whole = hash(_prompt(chat)), hash(_whole(chat))
        if whole in seen[prompt]:
            found.note("are copies of one before", chat.place)
        elif seen[prompt] and _prompt(chat):
            found.note("ask what was asked before, with another answer", chat.place)
        seen[prompt].add(whole)


def _leaks(chats: Sequence[Chat], validation: Sequence[Chat], found: Findings) -> None:
    asked = {hash(_prompt(chat)) for chat in chats}
    for chat in validation:
        if hash(_prompt(chat)) in asked:
            found.note("of the validation data ask what the training data asks", chat.place)


def _lengths(chats: Sequence[Chat], tokenizer: Tokenizer, found: Findings, learn: Learn) -> None:
    """Measure what training would read, and what of it could not be used."""
    lengths = []
    reasons: Counter[str] = Counter()
    for start in range(0, len(chats), AT_A_TIME):
        part = chats[start : start + AT_A_TIME]
        for chat, one in zip(part, rendered(tokenizer, part, learn), strict=True):
            lengths.append(len(one.tokens))
            found.learned += sum(one.mask[1:])
            if tokenizer.bos != tokenizer.end and one.tokens.count(tokenizer.bos) > 1:
                found.note(f"have {tokenizer.bos_token} twice", chat.place)
            reason = unfit(one, found.context) if chat.text is None else None
            if reason:
                reasons[reason] += 1
                found.note(f"are left out: {reason}", chat.place)
    found.lengths = np.array(lengths, np.int64)
    found.tokens = int(found.lengths.sum())
    if chats and reasons.total() == len(chats):
        lost = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
        found.fatal.append(f"none of {len(chats):,} examples can be learned from: {lost}")
    if not chats:
        found.fatal.append("there are no examples")


def _bins(lengths: np.ndarray) -> Iterator[tuple[int, int, int]]:
    if not len(lengths):
        return
    edges = [0, *(2**power for power in range(4, max(int(lengths.max()).bit_length(), 4) + 1))]
    counts = np.histogram(lengths, edges)[0]
    used = np.flatnonzero(counts)
    for index in range(used[0], used[-1] + 1):
        yield edges[index], edges[index + 1] - 1, int(counts[index])
