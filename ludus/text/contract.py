"""The contract between training and serving, checked on the actual data and template before a step is made (law 5).

What is checked here is checked again from the outside, on the tokens: a served prompt begins the training row, the
stop token is learned, exactly the assistant's spans are, no content became a special token, there is one beginning.
Then the template is given the contents themselves, as other software does, to say where that would serve another text.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ludus.base.errors import DataError
from ludus.text.chat import Learn, Message, Rendered, frame_of, learned, names_of, render, template_words
from ludus.text.formats import Chat
from ludus.text.spans import Span, plain, view
from ludus.text.template import DATE, render_text, today
from ludus.text.templates import OURS
from ludus.text.tokenizer import Tokenizer

__all__ = ["Contract", "Span", "check", "plain", "strips", "view"]
SAMPLE = 512  # conversations that are taken apart; spread evenly over the data


@dataclass(frozen=True)
class Contract:
    """What was found: `errors` break the law, `warnings` say what to know; both with how many conversations."""

    checked: int
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def uphold(self) -> None:
        """Raise `DataError` with the first error, if there is one."""
        if self.errors:
            more = f" (and {len(self.errors) - 1} more)" if len(self.errors) > 1 else ""
            raise DataError(f"the chat template does not hold what training needs: {self.errors[0]}{more}")


def check(tokenizer: Tokenizer, chats: Sequence[Chat], learn: Learn = "all", *, sample: int = SAMPLE) -> Contract:
    """Check the contract on conversations, spread over the data. What fails is counted, with the first place."""
    spoken = [chat for chat in chats if chat.text is None]
    chosen = spoken[:: max(1, -(-len(spoken) // sample))] if spoken else []
    found = Contract(len(chosen))
    errors: dict[str, list[str]] = {}
    warnings: dict[str, list[str]] = {}
    for chat in chosen:
        try:
            for problem in _broken(tokenizer, chat.messages, learn):
                errors.setdefault(problem, []).append(chat.place)
            for problem in _elsewhere(tokenizer, chat.messages, learn):
                warnings.setdefault(problem, []).append(chat.place)
        except DataError as error:
            errors.setdefault(str(error), []).append(chat.place)
    found.errors.extend(_counted(errors, len(chosen)))
    found.warnings.extend(_counted(warnings, len(chosen)))
    found.warnings.extend(_of_template(tokenizer))
    return found


def _counted(problems: dict[str, list[str]], count: int) -> Iterator[str]:
    for problem, places in sorted(problems.items(), key=lambda item: -len(item[1])):
        where = f", first at {places[0]}" if places[0] else ""
        yield f"{problem} ({len(places):,} of {count:,} conversations{where})"


def _broken(tokenizer: Tokenizer, messages: Sequence[Message], learn: Learn) -> Iterator[str]:
    """Yield what breaks the law in a conversation, seen on its tokens alone."""
    full = render(tokenizer, messages, learn=learn)
    roles = tuple(message["role"] for message in messages)
    chosen = learned(messages, learn)
    for index, role in enumerate(roles):
        if role == "assistant":
            prompt = render(tokenizer, messages[:index], generation_prompt=True) if index else None
            start = len(prompt.tokens) if prompt else 0
            if prompt and full.tokens[:start] != prompt.tokens:
                yield "a served prompt is not what training shows before the answer"
            elif chosen[index] and index and not all(full.mask[start : start + 1]):
                yield "the answer's first token is not learned"
    yield from _wrong_mask(tokenizer, messages, full, chosen)
    if tokenizer.bos not in tokenizer.ends and tokenizer.bos in full.tokens[1:]:
        count = full.tokens.count(tokenizer.bos)
        yield f"{tokenizer.bos_token} stands {count} times in a conversation, and not once at its beginning"


def _wrong_mask(
    tokenizer: Tokenizer, messages: Sequence[Message], full: Rendered, chosen: Sequence[bool]
) -> Iterator[str]:
    """Yield what is wrong with the mask: the learned tokens must be the chosen turns, to their stop tokens."""
    special = set(tokenizer.special_ids.values())
    frame = frame_of(tokenizer, tuple(message["role"] for message in messages))
    learnt = [token for token, bit in zip(full.tokens, full.mask, strict=True) if bit]
    wanted = b"".join(
        tokenizer.decode_bytes(turn.lead, beginning=False)
        + frame.text(index, message["content"]).encode("utf-8", "surrogatepass")
        + tokenizer.decode_bytes(turn.tail, beginning=False)
        for index, (message, turn, yes) in enumerate(zip(messages, frame.turns, chosen, strict=True))
        if yes
    )
    if tokenizer.lossless and tokenizer.decode_bytes(learnt, beginning=False) != wanted:
        yield "what is learned is not what the chosen turns say"
    answers = sum(message["role"] == "assistant" and yes for message, yes in zip(messages, chosen, strict=True))
    if learnt.count(tokenizer.end) < answers:
        yield f"the stop token {tokenizer.end_token} is not learned after every answer, so the model would not stop"
    in_template = sum(token in special for token in _template_tokens(tokenizer, messages))
    if sum(token in special for token in full.tokens) != in_template:
        yield "a content became a special token"


def _template_tokens(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    words = template_words(tokenizer, tuple(message["role"] for message in messages), False)
    return [token for text in words.texts for token in tokenizer.encode_template(text)]


def _elsewhere(tokenizer: Tokenizer, messages: Sequence[Message], learn: Learn) -> Iterator[str]:
    """Yield where software that gives the template the contents themselves would serve something else."""
    roles = tuple(message["role"] for message in messages)
    frame, ours = frame_of(tokenizer, roles), _as_text(tokenizer, messages)
    if _rendered_elsewhere(tokenizer, messages) != ours:
        yield (
            "the template changes these contents (as thinking that is taken out of earlier turns), and ludus does not: "
            "other software would serve another prompt; take it out of the data, or choose another template"
        )
    elif _encoded_apart(tokenizer, messages, ours):
        yield (
            "where contents meet the template's words, software that encodes both together gets other tokens; "
            "ludus serves as it trains"
        )
    if tokenizer.bos not in tokenizer.ends and all(tokenizer.bos not in turn.before for turn in frame.turns):
        yield f"the template does not begin with {tokenizer.bos_token}, as the texts of pretraining may have done"
    answers = [index for index, role in enumerate(roles) if role == "assistant"]
    if learn != "last" and any(_changes(tokenizer, roles, index) for index in answers[:-1]):
        yield (
            "the template shows an answer differently once the conversation goes on, so earlier turns would be learned "
            "in a form that is not asked for; learn=last learns the last turn alone"
        )
    leads = [tokenizer.decode(frame.turns[index].lead) for index in answers if frame.turns[index].lead]
    if leads:
        yield f"the template begins an answer with {leads[-1]!r}, which a served prompt lacks; it is learned with it"


def _as_text(tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    """Return a conversation as the text that ludus trains on, special tokens by their names."""
    roles = tuple(message["role"] for message in messages)
    words, frame = template_words(tokenizer, roles, False), frame_of(tokenizer, roles)
    parts = [
        frame.text(index, message["content"]).removeprefix(frame.turns[index].space) + words.texts[index + 1]
        for index, message in enumerate(messages)
    ]
    return words.texts[0] + "".join(parts)


def _rendered_elsewhere(tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    shown = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
    template = tokenizer.template or ""
    names, trusted = names_of(tokenizer), template in OURS
    return render_text(template, shown, generation_prompt=False, tokens=names, trusted=trusted)


def _encoded_apart(tokenizer: Tokenizer, messages: Sequence[Message], text: str) -> bool:
    """Tell whether words and contents encoded together give other tokens; contents with special tokens always would."""
    if any(token in message["content"] for message in messages for token in tokenizer.special_ids):
        return False
    return tokenizer.encode_template(text) != render(tokenizer, messages).tokens


def _changes(tokenizer: Tokenizer, roles: tuple[str, ...], index: int) -> bool:
    """Tell whether what stands before an answer depends on what comes after it."""
    short, full = (template_words(tokenizer, part, False).texts for part in (roles[: index + 1], roles))
    return short[:-1] != full[: index + 1] or not full[index + 1].startswith(short[-1])


def _of_template(tokenizer: Tokenizer) -> Iterator[str]:
    if "strftime_now" in (tokenizer.template or ""):
        yield f"the template shows a date; it is always {today():%d %B %Y} here ({DATE} sets another)"


def strips(tokenizer: Tokenizer, chats: Sequence[Chat]) -> Counter[str]:
    """Count the contents, by role, whose outer spaces the template takes away."""
    found: Counter[str] = Counter()
    for chat in chats:
        roles = tuple(message["role"] for message in chat.messages)
        if chat.text is None and any(message["content"] != message["content"].strip() for message in chat.messages):
            frame = frame_of(tokenizer, roles)
            for index, message in enumerate(chat.messages):
                kept = frame.text(index, message["content"]).removeprefix(frame.turns[index].space)
                found[message["role"]] += int(kept != message["content"])
    return +found
