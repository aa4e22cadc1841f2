"""Training a vocabulary: byte-level BPE, or one token for each character.

The same texts give the same tokenizer, byte for byte. Using an existing vocabulary instead lives here too, so that a
recipe has one call to make.
"""

from collections.abc import Iterable, Iterator

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as HuggingFace

from ludus.base.errors import DataError
from ludus.text.alphabet import raw_byte
from ludus.text.find import find
from ludus.text.settings import TokenizerSettings
from ludus.text.template import BOS, END, ENDOFTEXT, ENDOFTEXT_TEMPLATE, NEEDED, PAD, SPECIALS, TEMPLATE
from ludus.text.tokenizer import Tokenizer

# A word with the space before it; one digit at a time, so that arithmetic sees its place values; punctuation with its
# line ends; line ends with the blanks before them; other blanks, leaving the last one to the word that follows.
SPLIT = r" ?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+\n*|\s*\n+|\s+(?!\S)|\s+"

_SHORTEST_SAMPLE = 1000  # characters of a text that is not taken whole


def prepare(texts: Iterable[str], settings: TokenizerSettings) -> Tokenizer:
    """Return the tokenizer the settings ask for: the existing one at `path`, else one trained on the texts.

    An existing one without a chat template gets ours, and its tokens. Raises `DataError` for one that loses text, with
    which a model that is to be trained from nothing had better not begin.
    """
    if not settings.path:
        return train(texts, settings)
    found = Tokenizer.load(find(settings.path))
    if not found.lossless:
        raise DataError(
            f"the tokenizer at {settings.path} does not give back every text that it reads; use another, "
            "or train one with `tokenizer.path=null`"
        )
    return with_own_template(found)


def with_own_template(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer with a chat template: its own if it has one, else ours, with the tokens that ours needs.

    A vocabulary that has `<|endoftext|>` begins and ends documents and turns with that.
    """
    if tokenizer.template is not None:
        return tokenizer
    specials = tokenizer.special_ids
    if ENDOFTEXT in specials and BOS not in specials and END not in specials:
        template, bos, end = ENDOFTEXT_TEMPLATE, ENDOFTEXT, ENDOFTEXT
    else:
        template, bos, end = TEMPLATE, BOS, END
    return tokenizer.with_template(template, tokens=NEEDED[template], bos=bos, end=end, pad=PAD)


def sampled(texts: Iterable[str], share: float) -> Iterator[str]:
    """Yield a share of all characters, evenly: some texts whole, of long ones the beginning."""
    owed = 0.0
    for text in texts:
        owed += share * len(text)
        if owed >= min(len(text), _SHORTEST_SAMPLE):
            yield text[: int(owed)]
            owed -= min(len(text), int(owed))


def train(texts: Iterable[str], settings: TokenizerSettings) -> Tokenizer:
    """Train a tokenizer; raises `DataError` when the texts cannot fill the vocabulary asked for."""
    if settings.kind == "character":
        return _train_characters(texts)
    return _train_bpe(texts, settings.vocabulary)


def _train_bpe(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    rust = HuggingFace(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    rust.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,  # a merge seen once would memorise one place of the text
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rust.train_from_iterator(texts, trainer)
    supported = rust.get_vocab_size()
    if supported < vocabulary:
        raise DataError(
            f"the text supports a vocabulary of {supported} tokens, {vocabulary} were asked for; "
            f"set tokenizer.vocabulary={supported} or less, or give more text"
        )
    return Tokenizer(rust.to_str(pretty=True), name=f"bpe-{vocabulary}")


def _train_characters(texts: Iterable[str]) -> Tokenizer:
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    if not characters:
        raise DataError("there is no text to take characters from; give the corpus some text")
    tokens = [*SPECIALS, *map(raw_byte, range(256)), *sorted(characters)]
    rust = HuggingFace(
        models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[], byte_fallback=True)
    )
    rust.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])  # type: ignore[assignment]
    rust.add_special_tokens(list(SPECIALS))
    return Tokenizer(rust.to_str(pretty=True), name=f"characters-{len(tokens)}")
