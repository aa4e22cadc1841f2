"""The model card that lies beside a model: what it is, where it comes from, and the code that loads it."""

from collections.abc import Mapping
from typing import Any

from ludus.model.architecture import Architecture
from ludus.model.families import layout_for
from ludus.text.tokenizer import Tokenizer

CARD = """\
---
library_name: {library}
pipeline_tag: text-generation
tags:
- ludus
---

# {name}

A decoder-only language model ({family} layout) with {parameters:,} parameters, made with ludus.

| | |
|---|---|
{rows}

It knows only what its training text taught it. It will state falsehoods fluently, it has not been tested for safety,
and its size limits what it can do: check whatever you use it for.

## Loading

{loading}
"""
ELSEWHERE = """\
```python
from transformers import AutoModelForCausalLM{tokenizer_import}

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder"){tokenizer_line}
```

or talk to it with `ludus chat path/to/this/folder`."""
ONLY_HERE = """\
Talk to it with `ludus chat path/to/this/folder`, or in Python:

```python
from ludus.model.exchange import load

model = load("path/to/this/folder")
```

Note: {notice}."""


def card(
    name: str,
    shape: Architecture,
    tokenizer: Tokenizer | None,
    facts: Mapping[str, Any],
    *,
    parameters: int,
    notice: str | None = None,
    family: str | None = None,
) -> str:
    """Return the README of a model, in Markdown; `notice` says why other software cannot load it.

    `family` is the layout it is written in, where the architecture alone does not decide that.
    """
    rows = {
        "layers": shape.layers,
        "width": shape.width,
        "heads": f"{shape.heads} for queries, {shape.kv_heads} for keys and values",
        "vocabulary": f"{shape.vocabulary:,} tokens",
        "context": f"{shape.context:,} tokens",
        **facts,
    }
    return CARD.format(
        name=name,
        library="ludus" if notice else "transformers",
        family=family or layout_for(shape).name,
        parameters=parameters,
        rows="\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in rows.items()),
        loading=ONLY_HERE.format(notice=notice) if notice else _elsewhere(tokenizer),
    )


def _elsewhere(tokenizer: Tokenizer | None) -> str:
    return ELSEWHERE.format(
        tokenizer_import=", AutoTokenizer" if tokenizer else "",
        tokenizer_line='\ntokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")' if tokenizer else "",
    )


def _cell(value: Any) -> str:
    """Keep a value in one cell of a table, whatever it says."""
    return " ".join(str(value).split()).replace("|", "\\|")
