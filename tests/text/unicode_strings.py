"""Strings that tokenizers get wrong: words of many scripts, runs of spaces, joined emoji, marks, controls, markers."""

import random

WORDS = """
the of with The model's don't we'LL I'm running internationalization 3.14159 1,000,000 def
print(x) a?b=c&d foo_bar CamelCase naïve Überraschung straße Привет 日本語 中文字符 العربية עברית हिन्दी ไทย
한국어 <s> </s> <unk> <|endoftext|> <|begin_of_text|> <|eot_id|> [INST] <0x0A> <0xFF> Ġ
""".split()  # noqa: SIM905
SPACES = [
    " ",
    "  ",
    " " * 7,
    " " * 16,
    " " * 23,
    "\n",
    "\n\n",
    "\r\n",
    "\t\t",
    " \n",
    "\n ",
    "\u00a0",
    "\u3000",
    "\x85",
]
EMOJI = ["👨‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪🇫🇷", "1️⃣", "❤️", "🧑🏿‍🚀"]
MARKS = "\u0301\u0308\u0327\u20dd\u200d\u200c\ufe0f\u064b\u05b0\u0e31"
BLOCKS = [(0x20, 0x7F), (0xA0, 0x250), (0x370, 0x500), (0x590, 0x700), (0x900, 0x980), (0xE00, 0xE80), (0x1100, 0x1200)]
BLOCKS += [(0x2000, 0x2070), (0x2190, 0x2580), (0x3040, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0xE000, 0xF900)]
BLOCKS += [(0xFF00, 0xFFF0), (0x1D400, 0x1D800), (0x1F300, 0x1FAFF), (0xE0100, 0xE01F0), (0xF0000, 0xF0100)]


def strings(count: int, seed: int = 0) -> list[str]:
    """Return so many strings, the same for a seed; none has `▁`, which SentencePiece takes for a space."""
    draw = random.Random(seed)
    return ["".join(_part(draw) for _ in range(draw.randrange(20))).replace("▁", "_") for _ in range(count)]


def _part(draw: random.Random) -> str:
    kind = draw.randrange(10)
    if kind < 3:
        return draw.choice(WORDS) + " " * draw.randrange(2)
    if kind == 3:
        return draw.choice(SPACES)
    if kind == 4:
        return draw.choice(EMOJI)
    if kind == 5:
        return draw.choice(WORDS) + draw.choice(MARKS)
    if kind == 6:
        return chr(draw.randrange(32)) + chr(127) * draw.randrange(2)
    if kind == 7:
        return draw.choice("aeo=-.#! ") * draw.randrange(1, 40)
    if kind == 8:
        first, last = draw.choice(BLOCKS)
        return "".join(chr(draw.randrange(first, last)) for _ in range(draw.randrange(1, 8)))
    code = draw.randrange(1, 0x110000)
    return "x" if 0xD800 <= code < 0xE000 else chr(code)
