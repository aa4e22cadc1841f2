"""Configuration: a schema of `Settings`, recipes, overrides, and one `resolve` that merges them.

Each value knows where it came from, each mistake is one line that names the nearest key, and what a field means is told
by `describe`. What the keys are is decided by the schema of whoever calls.
"""

from ludus.base.config.fill import fill
from ludus.base.config.help import describe
from ludus.base.config.overrides import bare_keys
from ludus.base.config.places import paths
from ludus.base.config.recipe import preset_names
from ludus.base.config.resolve import Resolved, load_resolved, resolve
from ludus.base.config.settings import Field, Settings, derived
from ludus.base.config.suggest import suggest_path, suggest_word

__all__ = [
    "Field",
    "Resolved",
    "Settings",
    "bare_keys",
    "derived",
    "describe",
    "fill",
    "load_resolved",
    "paths",
    "preset_names",
    "resolve",
    "suggest_path",
    "suggest_word",
]
