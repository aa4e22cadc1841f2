"""Models that ludus did not make: tuned by every kind of adapter, merged, exported, and compared elsewhere.

    python benchmarks/foreign.py                                        all families, all kinds: minutes on one thread
    python benchmarks/foreign.py --families gpt2 --kinds lora,prefix    some of them
    python benchmarks/foreign.py --llama2c stories260K.bin              and a model file of llama2.c's
    python benchmarks/foreign.py --tokenizers FOLDER                    with the real ones in gpt2/ and llama2/

Transformers saves a checkpoint of each family with random weights, its tokenizer beside it. The command line of ludus
then tunes, merges and exports; transformers loads what came out, and PEFT puts the adapter on the base as it was.
Printed is how far the largest logit is from that of the model in ludus, in float32. A difference above the limit, or a
conversation that `apply_chat_template` turns into other tokens, ends it with 1. It needs transformers and peft.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from foreign_bases import FAMILIES, QUESTIONS, make

from ludus.adapters.opening import open_model
from ludus.cli.main import main as command
from ludus.text.chat import render
from ludus.text.tokenizer import Tokenizer

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "LUDUS_QUIET": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
LIMIT = 1e-4  # of a logit, in float32
ROWS, TIME = 3, 40  # of random tokens that are compared on
STEPS = 3
ENDS = "sft.adapter.also=[embed_tokens,lm_head]"
KINDS = {
    "full": ["sft.adapter.kind=full"],
    "lora": ["sft.adapter.kind=lora"],
    "lora-ends": ["sft.adapter.kind=lora", ENDS],
    "lora-pissa": ["sft.adapter.kind=lora", "sft.adapter.initialise=pissa"],
    "lora+": ["sft.adapter.kind=lora+"],
    "dora": ["sft.adapter.kind=dora"],
    "vera": ["sft.adapter.kind=vera", "sft.adapter.rank=32"],
    "loha": ["sft.adapter.kind=loha"],
    "ia3": ["sft.adapter.kind=ia3"],
    "prefix": ["sft.adapter.kind=prefix", "sft.adapter.tokens=4"],
    "prompt": ["sft.adapter.kind=prompt", "sft.adapter.tokens=4"],
    "qlora": ["sft.adapter.kind=lora", "sft.quantise=nf4"],
}
VIRTUAL = ("prefix", "prompt")  # no weights, so nothing to merge or to export
LLAMA2C = "llama2c"


class Start(NamedTuple):
    """A model to tune, the same one as transformers loads it, and the template to tune it with."""

    path: Path
    peer: Path
    template: str = "auto"


class Cell(NamedTuple):
    """How far the largest logit moved by tuning, and how far those of other software are from ludus'; None: nothing.

    `chat` tells whether other software turns a conversation into the same tokens.
    """

    moved: float
    peft: float | None = None
    merged: float | None = None
    exported: float | None = None
    chat: bool = True

    @property
    def fits(self) -> bool:
        """Tell whether everything is the same."""
        return self.moved > 0 and self.chat and all(each is None or each <= LIMIT for each in self[1:4])


def ludus(*words: str) -> None:
    """Run a command line of ludus, quietly; raise if it fails."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = command(list(words))
    if code:
        raise RuntimeError(f"ludus {' '.join(words)} ended with {code}:\n{said.getvalue()[-2000:]}")


def tune(base: Start, kind: str, folder: Path) -> None:
    """Train for a few steps, with the rate that suits the kind."""
    data = folder.parent / "chats.jsonl"
    if not data.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"prompt": question, "completion": answer}) for question, answer in QUESTIONS]
        data.write_text("\n".join(lines) + "\n", "utf-8")
    ludus(
        *("sft", f"model={base.path}", f"data={data}", "threads=1", "precision=float32", "data.context=192"),
        *(f"sft.steps={STEPS}", "sft.rows=2", "sft.validation_share=0", f"sft.template={base.template}"),
        *(*KINDS[kind], "--folder", str(folder)),
    )


def logits_of(model: Any, rows: torch.Tensor) -> torch.Tensor:
    """Return the logits of the rows alone: PEFT's models also give those of virtual tokens."""
    with torch.no_grad():
        found = model(rows)
    return getattr(found, "logits", found)[:, -rows.shape[1] :].float()


def elsewhere(folder: Path) -> Any:
    """Load a model's folder in transformers, in float32."""
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def on_peft(base: Path, adapter: Path, vocabulary: int) -> Any:
    """Load the base in transformers and the adapter in PEFT, after making room for tokens that a template added."""
    import peft

    model = elsewhere(base)
    if model.config.vocab_size < vocabulary:
        before = model.config.vocab_size
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
        for ends in (model.get_input_embeddings(), model.get_output_embeddings()):  # as ludus does; theirs adds noise
            ends.weight.data[before:] = ends.weight.data[:before].mean(0)
    return peft.PeftModel.from_pretrained(model, str(adapter)).eval()


def same_chat(folder: Path) -> bool:
    """Tell whether transformers turns a conversation into the tokens that ludus trains on."""
    import transformers

    question, answer = QUESTIONS[0]
    chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    asked = theirs.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=False)
    told = theirs.apply_chat_template(chat, return_dict=False)
    return asked == render(ours, chat[:1], generation_prompt=True).tokens and told == render(ours, chat).tokens


def cell(base: Start, kind: str, folder: Path) -> Cell:
    """Tune one base by one kind, and compare what comes out."""
    tune(base, kind, folder / "run")
    model, adapter = folder / "run" / "sft" / "model", folder / "run" / "sft" / "adapter"
    tuned = open_model(model if kind == "full" else adapter, quantise="as-trained").eval()
    first = open_model(base.path).eval()
    rows = torch.randint(first.shape.vocabulary, (ROWS, TIME), generator=torch.Generator().manual_seed(0))
    ours, before = logits_of(tuned, rows), logits_of(first, rows)

    def apart(theirs: Any) -> float:
        return float((logits_of(theirs, rows) - ours).abs().max())

    found: dict[str, Any] = {"moved": float((ours[..., : before.shape[-1]] - before).abs().max())}
    if kind not in ("full", "qlora") and not without_peer(base, kind):
        found["peft"] = apart(on_peft(base.peer, adapter, tuned.shape.vocabulary))
    if kind not in VIRTUAL:
        if kind != "full":
            ludus("merge", str(folder / "run"), "--output", str(folder / "merged"))
            found["merged"] = apart(elsewhere(folder / "merged"))
        ludus("export", str(folder / "run"), "--output", str(folder / "exported"))
        found["exported"] = apart(elsewhere(folder / "exported"))
    found["chat"] = same_chat(adapter if kind in VIRTUAL else folder / "exported")
    return Cell(**found)


def without_peer(base: Start, kind: str) -> bool:
    """Tell whether PEFT lacks a kind for a model: it has no LoHa for the layers of its GPT-2."""
    return kind == "loha" and json.loads((base.peer / "config.json").read_text("utf-8"))["model_type"] == "gpt2"


def bases(names: list[str], folder: Path, tokenizers: Path | None, llama2c: Path | None) -> dict[str, Start]:
    """Make the models to tune."""
    found = {}
    for name in names:
        made = make(name, folder / name / "base", tokenizers)
        found[name] = Start(made, made, FAMILIES[name].template)
    if llama2c is not None:
        ludus("export", str(llama2c), "--output", str(folder / LLAMA2C / "peer"))
        found[LLAMA2C] = Start(llama2c, folder / LLAMA2C / "peer")
    return found


def row(family: str, kind: str, one: Cell) -> str:
    """Return a line of the table."""
    numbers = "".join("         -" if each is None else f"{each:10.1e}" for each in one[1:4])
    return f"{family:8s} {kind:11s} {one.moved:7.2f}{numbers}  {'same' if one.chat else 'NOT SAME':8s}"


def main() -> int:
    """Print the table; 1 if anything differs."""
    given = arguments()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    os.environ.update(QUIET)  # before transformers is imported
    torch.set_num_threads(1)
    started, wrong, largest = time.perf_counter(), [], 0.0
    print(f"{'model':8s} {'kind':11s} {'moved':>7s}{'PEFT':>10s}{'merged':>10s}{'exported':>10s}  chat", flush=True)
    with tempfile.TemporaryDirectory() as place:
        found = bases(given.families, Path(place), given.tokenizers, given.llama2c)
        for family, base in found.items():
            for kind in given.kinds:
                one = cell(base, kind, Path(place) / family / kind)
                largest = max([largest, *(each for each in one[1:4] if each is not None)])
                wrong += [] if one.fits else [f"{family} {kind}"]
                print(row(family, kind, one), flush=True)
    cells = len(found) * len(given.kinds)
    print(f"{cells} of {len(found)} models and {len(given.kinds)} kinds in {time.perf_counter() - started:.0f} s")
    print(f"largest difference {largest:.1e}; " + (f"WRONG: {', '.join(wrong)}" if wrong else "all the same"))
    return 1 if wrong else 0


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def some_of(known: Any) -> Any:
        def read(text: str) -> list[str]:
            names = text.split(",") if text else []
            if unknown := [name for name in names if name not in known]:
                raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(known)}")
            return names

        return read

    parser.add_argument("--families", type=some_of(FAMILIES), default=list(FAMILIES), help=",".join(FAMILIES))
    parser.add_argument("--kinds", type=some_of(KINDS), default=list(KINDS), help=",".join(KINDS))
    parser.add_argument("--tokenizers", type=Path, help="a folder with gpt2/tokenizer.json and llama2/tokenizer.model")
    parser.add_argument("--llama2c", type=Path, help="a model file of llama2.c's, its tokenizer beside it")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
