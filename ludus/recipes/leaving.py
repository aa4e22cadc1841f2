"""What a training stage leaves behind: the model with its card; under an adapter, that too, and proof of the merge."""

import shutil
from pathlib import Path
from typing import Any

import torch

from ludus.adapters import files as adapter_files
from ludus.adapters.certificate import merge_certificate, random_tokens, refuse
from ludus.adapters.opening import base_of
from ludus.adapters.surgery import is_adapted
from ludus.adapters.virtual import virtual_of
from ludus.base.console import say
from ludus.base.errors import CheckpointError
from ludus.base.files import folder_in_progress, write_json
from ludus.learning.loop import Run
from ludus.model import exchange
from ludus.model.hub import find
from ludus.recipes.base import weights_of
from ludus.recipes.company import Fit
from ludus.recipes.place import Made, Place

CERTIFICATE = "merge.json"


def leave(place: Place, work: Fit, run: Run, base: Path | None) -> Made:
    """Write the stage's model, and return it with what became of the data."""
    folder, model = place.stage(work.name), work.model
    facts = {"run": place.recipe.name, "stage": work.name, "steps": run.step}
    outputs = {"model": folder / "model"}
    about: dict[str, Any] = {}
    if is_adapted(model):
        outputs["adapter"] = folder / "adapter"
        _save_adapter(place, work, outputs["adapter"], base, facts)
        about = _about(work, outputs["adapter"])
        if not _merged(work, folder):
            with folder_in_progress(outputs["model"]) as temp:  # opened with its base under it
                shutil.copytree(outputs["adapter"], temp, dirs_exist_ok=True)
            say(f"  {outputs['model']} is the adapter; it is opened together with its base")
            return _made(outputs, work, run, about)
    exchange.save(model, outputs["model"], work.tokenizer, facts)
    return _made(outputs, work, run, about)


def _about(work: Fit, adapter: Path) -> dict[str, Any]:
    """Say of an adapter, before it is merged, what it is, how much learned, and how the weights under it are kept."""
    learned = sum(one.numel() for one in work.model.parameters() if one.requires_grad)
    kept = adapter_files.quantised_as(work.model)["quantise"]
    kind = getattr(getattr(work.settings, "adapter", None), "kind", "full")
    if kind in ("none", "full"):  # an adapter that was there before goes on learning
        kind = str(adapter_files.read_config(adapter).get("peft_type", "")).lower()
    return {"adapter": {"kind": kind, "trained": learned, "parameters": weights_of(work.model), "quantise": kept}}


def _save_adapter(place: Place, work: Fit, folder: Path, base: Path | None, facts: dict[str, Any]) -> None:
    """Write the adapter as PEFT does, with the tokenizer and template it was trained with."""
    name, revision = _under(place, work.name.removesuffix("-control"), base)
    adapter_files.save(work.model, folder, base=name, base_revision=revision, tokenizer=work.tokenizer, facts=facts)


def _under(place: Place, stage: str, base: Path | None) -> tuple[str, str | None]:
    """Return the name and the commit of the model under an adapter, be it one that has gone on learning."""
    named = place.brought(stage)
    found = find(named) if named else None
    if base and (base / adapter_files.CONFIG).is_file():
        found = base_of(base)
        base = found.folder
    if found and found.revision:
        return found.name, found.revision
    return str((base or Path()).resolve()), None


def _merged(work: Fit, folder: Path) -> bool:
    """Merge the adapter, in place and in the processor's memory, and write down how far logits are from the adapter's.

    False where it cannot be merged, was not to be, or where the merged model says something else.
    """
    if virtual_of(work.model) is not None:
        say("  virtual tokens are no weights, so there is nothing to merge")
        return False
    if not getattr(work.settings, "merge", True):
        return False
    model = work.model.to("cpu")
    dtype = getattr(torch, getattr(work.settings, "weights", "float32"))
    found = merge_certificate(model, random_tokens(model.shape), dtype=dtype, adapter=folder / "adapter")
    write_json(folder / CERTIFICATE, found)
    try:
        refuse(found)
    except CheckpointError as problem:
        say(f"  warning: {problem}")
        return False
    say(f"  merged: logits differ from the adapter's by at most {found['largest_difference']:.2g} ({found['dtype']})")
    return True


def _made(outputs: dict[str, Path], work: Fit, run: Run, about: dict[str, Any]) -> Made:
    account: dict[str, Any] = work.source.account() if hasattr(work.source, "account") else {}  # type: ignore[attr-defined]
    if account:
        domains = account.get("domains", {})
        fates = [f"{count:,} {fate}" for fate, count in account.items() if fate != "domains"]
        fates += [f"{name} {each['trained']:,} ({each['epochs']:.2f} epochs)" for name, each in domains.items()]
        say(f"  of all tokens: {', '.join(fates)}")
    return Made(outputs, tokens=run.source.tokens, summary={"steps": run.step, "account": account, **about})
