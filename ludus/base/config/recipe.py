"""Recipes on disk: find one by name or path, follow `extends:`, and split off its named variants.

    extends: small          # a preset's name, or a path relative to this file
    preset: full            # the variant used unless another is chosen; {gpu: full, cpu: small} chooses by the machine
    model: {depth: 4}
    presets:
      full: {model: {depth: 12}}

A recipe is YAML 1.2 and plain data. What its keys mean is the schema's business, not this module's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ludus.base.config.problems import did_you_mean, shown
from ludus.base.config.suggest import suggest_word
from ludus.base.config.tree import Node
from ludus.base.config.yaml import read_yaml
from ludus.base.errors import ConfigError
from ludus.base.machine import has_gpu

SUFFIXES = (".yaml", ".yml")
MOST_BYTES = 1_000_000


@dataclass(frozen=True)
class RecipeFile:
    """One file of an `extends:` chain, its reserved keys taken out."""

    shown: str
    values: Node
    variants: dict[str, Node]
    chosen: Node | None


def read_recipe(recipe: str | Path, presets: Path) -> list[RecipeFile]:
    """Return the chain of files, the most general first. Raises ConfigError."""
    chain: list[RecipeFile] = []
    seen: list[Path] = []
    wanted, folder, whence = str(recipe), Path(), ""
    while True:
        path, name = find_recipe(wanted, folder, presets, whence)
        if path.resolve() in seen:
            raise ConfigError(f"{whence}`extends` goes round in a circle: {name} is extended by itself")
        seen.append(path.resolve())
        file, extends = read_file(path, name)
        chain.insert(0, file)
        if extends is None:
            return chain
        if not isinstance(extends.value, str):
            raise ConfigError(
                f"extends: expected one name or path, got {shown(extends.plain())} (from {extends.origin})"
            )
        wanted, folder, whence = extends.value, path.parent, f"{extends.origin}: "


def find_recipe(wanted: str, folder: Path, presets: Path, whence: str) -> tuple[Path, str]:
    """Return the file for a name or path, and what to call it in messages."""
    direct = folder / wanted
    looks_like_path = wanted.endswith(SUFFIXES) or "/" in wanted or "\\" in wanted
    if looks_like_path or (direct.is_file() and wanted not in preset_names(presets)):
        if direct.is_file():
            return direct, direct.as_posix()
        reason = "is a folder, not a file" if direct.is_dir() else "does not exist"
        nearby = [path.name for path in direct.parent.glob("*") if path.suffix in SUFFIXES]
        near = suggest_word(direct.name, nearby)
        near = (direct.parent / near).as_posix() if near else preset_near(wanted, presets)
        hint = did_you_mean(near) or "a recipe is a YAML file or the name of a preset"
        raise ConfigError(f"{whence}recipe {direct.as_posix()} {reason}; {hint}")
    for suffix in SUFFIXES:
        if (path := presets / f"{wanted}{suffix}").is_file():
            return path, path.name
    names = preset_names(presets)
    listing = f"presets are {', '.join(names)}" if names else "there are no presets; give the path of a YAML file"
    near = preset_near(wanted, presets)
    raise ConfigError(
        f"{whence}unknown recipe {shown(wanted)}; " + (did_you_mean(near) + f" ({listing})" if near else listing)
    )


def preset_names(presets: Path) -> list[str]:
    """Return the names of the recipes that ship in a folder."""
    return sorted({path.stem for path in presets.glob("*") if path.suffix in SUFFIXES})


def preset_near(wanted: str, presets: Path) -> str | None:
    """Return the preset whose name is nearest."""
    return suggest_word(Path(wanted).stem, preset_names(presets))


def read_file(path: Path, name: str) -> tuple[RecipeFile, Node | None]:
    """Read one file; return it and the value of its `extends` key."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"recipe {name} is larger than {MOST_BYTES:,} bytes; is it a recipe?")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"recipe {name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"recipe {name} is not UTF-8 text; save it as UTF-8") from None
    tree = read_yaml(text, lambda line: f"recipe {name}:{line}")
    values = dict(section(tree, "a recipe", ""))
    extends, chosen = values.pop("extends", None), values.pop("preset", None)
    variants = values.pop("presets", None)
    found = dict(section(variants, "presets", "presets: ")) if variants else {}
    for variant, node in found.items():
        section(node, f"preset {variant}", f"presets.{variant}: ")
    return RecipeFile(name, Node(values, tree.origin), found, chosen), extends


def section(node: Node, what: str, key: str) -> Iterator[tuple[str, Node]]:
    """Return the entries of a mapping, none if it is empty. Raises ConfigError if it is something else."""
    if node.value is None:
        return iter(())
    if not isinstance(node.value, dict):
        raise ConfigError(f"{key}{what} must be keys and values, got {shown(node.plain())} (from {node.origin})")
    return iter(node.value.items())


def layers(chain: list[RecipeFile], choice: Node | None) -> list[Node]:
    """Return the trees to merge: the files in order, then the chosen variant as each file tells it.

    `choice` is the variant named outside the recipe, if any. Raises ConfigError when no file has it.
    """
    chosen = choice or default_choice(chain)
    trees = [file.values for file in chain]
    if chosen is None or chosen.value is None:
        return trees
    name = chosen.text if chosen.text is not None else str(chosen.plain())
    variants = [file.variants[name] for file in chain if name in file.variants]
    if not variants:
        known = list(dict.fromkeys(variant for file in chain for variant in file.variants))
        listing = f"this recipe has {', '.join(known)}" if known else "this recipe has no presets"
        hint = did_you_mean(suggest_word(name, known))
        raise ConfigError(f"preset: unknown preset {shown(name)} (from {chosen.origin}); {hint or listing}")
    return trees + [Node(node.value or {}, f"{node.origin} (preset {name})") for node in variants]


def default_choice(chain: list[RecipeFile]) -> Node | None:
    """Return the variant that the most particular file names, by this machine where it tells `gpu` from `cpu`."""
    chosen = next((file.chosen for file in reversed(chain) if file.chosen), None)
    if chosen is None or not isinstance(chosen.value, dict):
        return chosen
    if set(chosen.value) != {"gpu", "cpu"}:
        expected = "expected one name, or {gpu: NAME, cpu: NAME}"
        raise ConfigError(f"preset: {expected}, got {shown(chosen.plain())} (from {chosen.origin})")
    return chosen.value["gpu" if has_gpu() else "cpu"]


def machine_note(chain: list[RecipeFile]) -> str | None:
    """Say which variant the machine decided on, where a recipe leaves it to the machine; it is no silent choice."""
    chosen = next((file.chosen for file in reversed(chain) if file.chosen), None)
    if chosen is None or not isinstance(chosen.value, dict):
        return None
    taken, other = ("gpu", "cpu") if has_gpu() else ("cpu", "gpu")
    names = {kind: node.plain() for kind, node in chosen.value.items()}
    reason = "a GPU" if taken == "gpu" else "no GPU"
    return f"preset={names[taken]}, since this machine has {reason}; preset={names[other]} takes the other"
