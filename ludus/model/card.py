"""The model card that lies beside a model: what it is, where it comes from, and the code that loads it."""

from collections.abc import Mapping
from typing import Any

from ludus.model.cost import num_parameters
from ludus.model.settings import Architecture
from ludus.text.tokenizer import Tokenizer

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- ludus
---

# {name}

A decoder-only language model (Llama architecture) with {parameters:,} parameters, made with ludus.

| | |
|---|---|
{rows}

It knows only what its training text taught it. It will state falsehoods fluently, it has not been tested for safety,
and its size limits what it can do: check whatever you use it for.

## Loading

```python
from transformers import AutoModelForCausalLM{tokenizer_import}

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder"){tokenizer_line}
```

or talk to it with `ludus chat path/to/this/folder`.
"""


def card(name: str, shape: Architecture, tokenizer: Tokenizer | None, facts: Mapping[str, Any]) -> str:
    """Return the README of a model, in Markdown."""
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
        parameters=num_parameters(shape),
        rows="\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in rows.items()),
        tokenizer_import=", AutoTokenizer" if tokenizer else "",
        tokenizer_line='\ntokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")' if tokenizer else "",
    )


def _cell(value: Any) -> str:
    """Keep a value in one cell of a table, whatever it says."""
    return " ".join(str(value).split()).replace("|", "\\|")
