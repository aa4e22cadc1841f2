"""What all tests share: one torch thread, no progress bars, no network, and a tiny model with a mind of its own."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

for name, value in {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "LUDUS_QUIET": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}.items():
    os.environ[name] = value  # before torch is imported, and for every process a test starts


def pytest_configure(config: pytest.Config) -> None:
    config.option.importmode = "importlib"


@pytest.fixture(scope="session")
def shape() -> Callable:
    """Make a tiny architecture: `shape(layers=1, tied=True)`."""
    from ludus.model.settings import Architecture

    tiny = {"vocabulary": 61, "layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "hidden": 48}
    return lambda **changes: Architecture(**{**tiny, "context": 64, **changes})


@pytest.fixture(scope="session")
def tiny(shape: Callable) -> Callable:
    """Make a tiny model with real logits: `tiny(seed=1, backend="fused", layers=1)`.

    Fresh weights have a zero head and zero output projections, which would hide most mistakes; here none is zero.
    """
    import torch

    from ludus.model.transformer import Transformer, build

    def make(*, seed: int = 0, backend: str = "plain", **changes: object) -> Transformer:
        model = build(shape(**changes), seed=seed)
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(1 + 0.2 * noise if parameter.dim() == 1 else noise * parameter.shape[1] ** -0.5)
        for layer in model.layers:
            layer.self_attn.backend = backend
        return model.eval()

    return make


class Child:
    """A command line of ludus in a process of its own; `wait` for its exit code, then read `out` and `err`."""

    def __init__(self, nursery: subprocess.Popen, folder: Path) -> None:
        self._nursery, self._folder = nursery, folder
        self.number = int(self._line())

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; before `wait` only, which gives the child's number back to the system."""
        os.kill(self.number, number)

    def wait(self) -> int:
        code = int(self._line())
        self._nursery.stdin.write("\n")
        self._nursery.stdin.flush()
        return code

    @property
    def out(self) -> str:
        return (self._folder / "out.txt").read_text()

    @property
    def err(self) -> str:
        return (self._folder / "err.txt").read_text()

    def _line(self) -> str:
        return self._nursery.stdout.readline() or pytest.fail("the nursery has died")


@pytest.fixture(scope="session")
def ludus() -> Iterator[Callable[..., Child]]:
    """Run `ludus ARGV` in a child process: `ludus("run", "tiny.yaml", folder=tmp_path)`; one at a time."""
    script, root = Path(__file__).parent / "laws" / "law2_nursery.py", Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen([sys.executable, str(script)], **pipes) as nursery:

        def start(*argv: str, folder: Path, **environment: str) -> Child:
            job = {"argv": argv, "folder": str(folder), "environment": environment}
            nursery.stdin.write(json.dumps(job) + "\n")
            nursery.stdin.flush()
            return Child(nursery, folder)

        yield start
        nursery.stdin.close()


@pytest.fixture(scope="session")
def tiny_text() -> str:
    """Return two thousand characters that are no language but have its words, lines and full stops."""
    draw = random.Random(0)
    words = [
        draw.choice(["the", "cat", "sat", "on", "a", "mat", "and", "saw", "old", "red", "sea"]) for _ in range(550)
    ]
    return "".join(" ".join(words[start : start + 9]) + ".\n" for start in range(0, len(words), 9))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_text: str, ludus: Callable[..., Child]) -> Path:
    """Return a folder with `tiny.yaml`, the corpus it names and the finished run in `runs/tiny`; only to be copied."""
    folder = tmp_path_factory.mktemp("tiny")
    shutil.copy(Path(__file__).parent / "recipes" / "tiny.yaml", folder)
    (folder / "text.txt").write_text(tiny_text)
    child = ludus("run", "tiny.yaml", folder=folder)
    assert child.wait() == 0, child.err
    return folder
