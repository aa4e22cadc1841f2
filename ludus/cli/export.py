"""`ludus export`: a model's folder for other software, and the lines that load it there."""

from collections.abc import Sequence
from pathlib import Path

from ludus.base.console import say
from ludus.base.errors import ConfigError, RunError
from ludus.cli.chat import DTYPE, MODEL
from ludus.cli.options import Option, Usage, read

USAGE = Usage(
    "export",
    "Write a model for other software",
    (MODEL,),
    1,
    (
        Option(
            "--to", "format; hf is Hugging Face's, which transformers and vLLM read", str, "hf", "hf", choices=("hf",)
        ),
        DTYPE._replace(doc="of the weights that are written", default="as-stored"),
        Option("--quantise", "refused: no weights that other software reads come out of it", str, "KIND"),
        Option("--output", "where to; without it, a folder here that is named after the model", str, "FOLDER"),
        Option("--force", "replace a model that is there"),
    ),
)
CHATTING = """\
from transformers import pipeline
model = pipeline("text-generation", {folder!r}, do_sample=False)
print(model([{{"role": "user", "content": "What is 17 + 25?"}}])[0]["generated_text"][-1]["content"])"""
CONTINUING = """\
from transformers import pipeline
model = pipeline("text-generation", {folder!r})
print(model({bos!r} + "Once upon a time", max_new_tokens=40)[0]["generated_text"])"""

QUANTISED = (
    "--quantise: an export holds whole weights, since each library packs quantised ones in a way of its own; export "
    "without it, and quantise while loading: `ludus chat MODEL --quantise nf4`, or transformers' BitsAndBytesConfig"
)


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    given = read(USAGE, argv)
    if given is None:
        return 0
    from ludus.cli.talk import dtype_of
    from ludus.generation.speaker import Speaker, facts
    from ludus.model import exchange
    from ludus.model.hub import ADAPTER, find

    if given["quantise"] is not None:
        raise ConfigError(QUANTISED)
    source = find(given.words[0]).folder
    if (source / ADAPTER).is_file():
        raise RunError(f"{source} is an adapter, not a whole model; {_instead(source)}")
    output = Path(given["output"]) if given["output"] else Path(name_of(source) + "-hf")
    check(output, source, given["force"])
    speaker = Speaker.load(source, dtype=dtype_of(given["dtype"]))
    exchange.save(speaker.model, output.resolve(), speaker.tokenizer, facts(source))
    size = sum(file.stat().st_size for file in output.iterdir())
    warning = exchange.notice(speaker.model.shape)
    layout = "ludus' own layout" if warning else "Hugging Face's layout"
    say(f"{source} is now in {output} ({size / 1e6:.1f} MB), in {layout}")
    if warning:
        say(warning)
        return 0
    say("\nuse it from Python:\n")
    lines = CONTINUING if speaker.only_continues else CHATTING
    say(lines.format(folder=str(output.resolve()), bos=speaker.tokenizer.bos_token))
    return 0


def _instead(adapter: Path) -> str:
    from ludus.adapters.files import read_config
    from ludus.adapters.peft_config import VIRTUAL

    if read_config(adapter).get("peft_type") in VIRTUAL:
        return "it cannot be merged, and PEFT loads the folder as it is, on its base"
    return f"fold it into its base with `ludus merge {adapter}`"


def name_of(source: Path) -> str:
    """Return a name for a model's folder: that of its run and stage, or its own."""
    path = source.resolve()
    return f"{path.parent.parent.name}-{path.parent.name}" if path.name == "model" else path.name


def check(output: Path, source: Path, force: bool) -> None:
    """Raise RunError if the output is in the way: the model itself, a file, or a folder that may not be replaced."""
    here, there = source.resolve(), output.resolve()
    if there == here or there in here.parents or here in there.parents:
        raise RunError(f"{output} is the model itself, or around or inside it; give another --output")
    if there.is_dir() and not any(there.iterdir()):
        return
    if there.is_dir() and not (there / "config.json").is_file():
        raise RunError(
            f"{output} holds other things than a model, which an export never replaces; give another --output"
        )
    if there.exists() and not (force and there.is_dir()):
        raise RunError(f"{output} already exists; give another --output, or --force to replace it")
