"""Rows that fit: a step split into as many micro-batches as memory asks for, before training begins.

The gradient does not depend on the split, so this is a choice a machine may make; it is made once and kept.
"""

from dataclasses import replace

import torch

from ludus.base.console import say
from ludus.base.files import read_json, write_json
from ludus.learning import device
from ludus.planning import spending, work
from ludus.planning.devices import Device
from ludus.planning.machine import this_machine
from ludus.planning.micro_batch import choose_rows
from ludus.planning.text import of_recipe
from ludus.recipes.place import Place


def fitted(place: Place) -> Place:
    """Return the run with rows and accumulation that fit into memory; chosen once, so that it is resumed with them."""
    settings, file = place.recipe.pretrain, place.stage("pretrain") / "rows.json"
    if file.is_file():
        chosen = read_json(file)
    else:
        here = _device(place)
        asked = work.pretraining(place.recipe, of_recipe(place.recipe, place.folder))
        choice = choose_rows(
            asked, memory_bytes=here.memory_bytes, total=lambda each: spending.memory(each, here).total
        )
        say(f"  {choice.reason}")
        chosen = {"rows": choice.rows, "accumulate": choice.accumulate}
        write_json(file, chosen)
    recipe = place.recipe.model_copy(update={"pretrain": settings.model_copy(update=chosen)})
    return replace(place, recipe=recipe)


def _device(place: Place) -> Device:
    """Return where the run will be, with the memory that is free there."""
    where = device.place(place.recipe.device).device
    if where.type != "cuda":
        return this_machine(place.recipe.threads or 1)[0]
    name, memory = torch.cuda.get_device_name(where), torch.cuda.mem_get_info(where)[0]
    return Device("this", name, "gpu", rates={"float32": 1.0, "bfloat16": 1.0}, memory_bytes=memory)
