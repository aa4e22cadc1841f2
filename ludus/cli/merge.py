"""`ludus merge`: fold an adapter into its base, prove that the model still says the same, and write it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ludus.base.console import say
from ludus.base.errors import DataError
from ludus.cli.export import check
from ludus.cli.options import Option, Usage, read

if TYPE_CHECKING:
    from torch import Tensor

    from ludus.model.transformer import Transformer
    from ludus.text.tokenizer import Tokenizer

USAGE = Usage(
    "merge",
    "Fold an adapter into its base, and write the model that says the same",
    (("ADAPTER", "an adapter's folder, or a run, whose newest adapter is meant"),),
    1,
    (
        Option("--base", "the model under it; without it, the one that the adapter names", str, "MODEL"),
        Option("--output", "where to; without it, a folder here that is named after the adapter", str, "FOLDER"),
        Option(
            "--dtype",
            "of the weights that are written",
            str,
            "DTYPE",
            "float32",
            choices=("float32", "bfloat16"),
        ),
        Option("--text", "compare on the beginning of this file as well as on random tokens", str, "FILE"),
        Option("--force", "replace a model that is there"),
    ),
    "A base that was quantised for training becomes dense: the adapter is added to the weights that training saw.\n"
    "What the merge changed is in merge.json beside the model; nothing is written if it is more than rounding.",
)


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    given = read(USAGE, argv)
    if given is None:
        return 0
    import torch

    from ludus.adapters import certificate as certificates
    from ludus.adapters.opening import base_of, newest_adapter, open_model
    from ludus.base.files import write_json
    from ludus.model import exchange

    adapter = newest_adapter(given.words[0])
    output = Path(given["output"]) if given["output"] else Path(name_of(adapter))
    check(output, adapter, given["force"])
    base = base_of(adapter, given["base"])
    check(output, base.folder, given["force"])
    model = open_model(adapter, base=base.folder, quantise="as-trained")
    tokenizer = tokenizer_of(adapter, base.folder)
    found = certificates.merge_certificate(
        model,
        tokens_of(model, tokenizer, given["text"]),
        dtype=getattr(torch, given["dtype"]),
        adapter=adapter,
        base=base.folder,
    )
    certificates.refuse(found)
    facts = {"stage": "merge", "base": base.name, "adapter": str(adapter)}
    exchange.save(model, output.resolve(), tokenizer, facts)
    write_json(output / certificates.FILE, found)
    say(f"{adapter} on {base.name} is now one model, in {output}")
    for line in lines_of(found):
        say(f"  {line}")
    return 0


def lines_of(found: dict[str, Any]) -> list[str]:
    """Say what a certificate says."""
    return [
        f"{found['layers']} layers of {found['kind']}, base quantised: {found['base_quantised']}",
        f"merged in float32, logits differ by {found['float32']['largest_difference']:.2g} at most",
        f"as {found['dtype']} by {found['largest_difference']:.2g} at most, {found['mean_difference']:.2g} on average, "
        f"{found['relative_difference']:.2g} of the largest logit",
        f"the likeliest token is the same in {found['argmax_agreement']:.2%} of {found['tokens']:,} places",
        *(["head and embedding were one and are two now"] if found["tied_before"] and not found["tied_after"] else []),
    ]


def name_of(adapter: Path) -> str:
    """Return a name for the merged model: that of the run and the stage, or of the adapter's folder."""
    path = adapter.resolve()
    name = f"{path.parent.parent.name}-{path.parent.name}" if path.name == "adapter" else path.name
    return f"{name}-merged"


def tokenizer_of(adapter: Path, base: Path) -> "Tokenizer | None":
    """Return the tokenizer that the adapter was trained with: its own, that of the model beside it, or its base's."""
    from ludus.text.tokenizer import Tokenizer

    for folder in (adapter, adapter.parent / "model"):
        if (folder / "tokenizer.json").is_file():
            return Tokenizer.load(folder)
    try:
        return Tokenizer.load(base)
    except DataError:
        say(f"{base} has no tokenizer, so the merged model is written without one")
        return None


def tokens_of(model: "Transformer", tokenizer: "Tokenizer | None", text: str | None) -> "Tensor":
    """Return rows of tokens to compare on: random ones, and the beginning of a text.

    Raises:
        DataError: the text cannot be read, or there is no tokenizer for it.
    """
    import torch

    from ludus.adapters.certificate import random_tokens

    rows = random_tokens(model.shape)
    if text is None:
        return rows
    try:
        words = Path(text).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"{text} cannot be read as text: {problem}") from None
    if tokenizer is None:
        raise DataError(f"{text} cannot be compared on: the model has no tokenizer; leave --text out")
    found = tokenizer.encode(words[: 32 * rows.shape[1]])[: rows.shape[1]]
    if len(found) < rows.shape[1]:
        raise DataError(f"{text} has {len(found)} tokens; give a text of {rows.shape[1]} or more")
    return torch.cat([rows, torch.as_tensor(found, dtype=rows.dtype)[None]])
