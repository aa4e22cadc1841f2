import subprocess
import sys

import pytest

from ludus.adapters.settings import AdapterSettings, LoraSettings, NoAdapter
from ludus.base.config import Settings, describe, resolve
from ludus.base.errors import ConfigError


class Recipe(Settings):
    adapter: AdapterSettings = NoAdapter()


def resolved(*overrides: str):
    found = resolve(Recipe, recipe=None, presets=None, environment={}, overrides=list(overrides))
    return found.settings.adapter


def test_no_adapter_is_the_default():
    assert resolved() == NoAdapter()


def test_lora_takes_every_layer_or_a_list_of_them():
    assert resolved("adapter.kind=lora") == LoraSettings(rank=8, alpha=16, targets="all-linear", dropout=0)
    assert resolved("adapter.kind=lora", "adapter.targets=[q_proj, v_proj]").targets == ["q_proj", "v_proj"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["adapter.kind=lora", "adapter.rank=0"], "adapter.rank"),
        (["adapter.kind=lora", "adapter.targets=q_proj"], "adapter.targets.*all-linear or a list of text"),
        (["adapter.kind=lora", "adapter.dropout=1"], "adapter.dropout"),
        (["adapter.rank=4"], "belongs to adapter.kind=lora"),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(overrides: list[str], says: str):
    with pytest.raises(ConfigError, match=says) as caught:
        resolved(*overrides)
    assert "\n" not in str(caught.value)


def test_help_describes_every_field():
    text = describe(Recipe)
    for name in ("rank", "alpha", "targets", "dropout"):
        assert name in text


def test_settings_come_without_torch():
    script = "import sys; import ludus.adapters.settings; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
