"""Every kind of adapter on the same data, steps and order: which one is worth its parameters, memory and time.

What lives here: the kinds, the processes that try them one after the other, and the file that keeps what they found.
What does not: one trial (`peft_trial.py`), and what is made of the figures (`peft_results.py`). The one idea: a
finished (kind, seed) is kept under the hash of all that decides it, and is never run again for nothing.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import ludus
from ludus.adapters.rates import default_rate
from ludus.base.console import Meter, say
from ludus.base.errors import ConfigError, LudusError, nearest
from ludus.base.files import atomic_write, make_folder, read_json, sha256_json, write_json
from ludus.evaluation.forgetting import LIMIT_BYTES, general
from ludus.model.hub import find
from ludus.recipes.brought import base_of
from ludus.recipes.peft_measures import Say
from ludus.recipes.peft_trial import MARK, Job, trials
from ludus.runs.artefacts import sha256_artefact
from ludus.runs.folder import hold

RESULTS, JOB, TEXTS, LOG = "bench.json", "job.json", "general.json", "output.log"
ALL = ("full", "lora", "qlora", "rslora", "pissa", "lora+", "dora", "vera", "loha", "ia3", "prefix", "prompt")
WHOLE = ("full", "pissa")  # kinds that change the weights a quantised base has frozen


class Variant(NamedTuple):
    """A kind on a base: its name, its adapter's settings, how the base is quantised, and the kind its rate is of."""

    name: str
    adapter: dict[str, Any]
    quantise: str
    rated: str


@dataclass(frozen=True)
class Bench:
    """What is asked for."""

    model: str
    data: str
    output: Path
    kinds: Sequence[str] = ALL
    quantise: Sequence[str] = ("none",)
    steps: int = 100
    rows: int = 4
    context: int = 256
    seeds: int = 3
    rank: int = 8
    rates: dict[str, float] = field(default_factory=dict)
    text: str | None = None
    bytes: int = LIMIT_BYTES
    held_out: float = 0.15
    most_held_out: int = 128
    precision: str = "float32"
    device: str = "auto"
    threads: int | None = None


Trial = Callable[[Job, Path, Say], None]


def variants(kinds: Sequence[str], quantise: Sequence[str], rank: int = 8) -> list[Variant]:
    """Return each kind on each base. Raises ConfigError for an unknown one."""
    low = {"rank": rank, "alpha": 2.0 * rank}
    known: dict[str, dict[str, Any]] = {
        "full": {"kind": "full"},
        "lora": {"kind": "lora", **low},
        "qlora": {"kind": "lora", **low},
        "rslora": {"kind": "lora", **low, "rank_stabilised": True},
        "pissa": {"kind": "lora", "rank": rank, "alpha": float(rank), "initialise": "pissa"},
        "lora+": {"kind": "lora+", **low},
        "dora": {"kind": "dora", **low},
        "vera": {"kind": "vera"},
        "loha": {"kind": "loha", "rank": rank, "alpha": float(rank)},
        "ia3": {"kind": "ia3"},
        "prefix": {"kind": "prefix"},
        "prompt": {"kind": "prompt"},
    }
    for kind in kinds:
        if kind not in known:
            near = nearest(kind, known)
            raise ConfigError(
                f"no kind {kind}" + (f"; did you mean {near}?" if near else f"; known: {', '.join(known)}")
            )
    found: dict[tuple[str, str], Variant] = {}
    for kind in kinds:
        for how in ("nf4",) if kind == "qlora" else quantise:
            if how != "none" and kind in WHOLE:
                say(f"  {kind} is left out on {how}: it changes weights that are frozen there")
                continue
            plain, rated = ("lora", "lora") if kind == "qlora" else (kind, kind)
            name = plain if how == "none" else "qlora" if (plain, how) == ("lora", "nf4") else f"{plain} on {how}"
            found[plain, how] = Variant(name, known[kind], how, rated)
    return list(found.values())


def run(bench: Bench, trial: Trial | None = None) -> dict[str, Any]:
    """Bring the bench up to date and return what `bench.json` holds. Raises LudusError if not even the base can run."""
    make_folder(bench.output)
    with hold(bench.output):
        return _Work(bench, trial or in_a_process).done()


def in_this_process(job: Job, folder: Path, said: Say) -> None:
    """Try here: no process is started, so memory is that of all trials together."""
    trials(job, said)


def in_a_process(job: Job, folder: Path, said: Say) -> None:
    """Try in a process of its own. Raises LudusError with its last words if it fails."""
    write_json(folder / JOB, job.as_json())
    root = str(Path(ludus.__file__).parents[1])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"}
    if job.threads:
        environment["OMP_NUM_THREADS"] = str(job.threads)
    command = [sys.executable, "-m", "ludus.recipes.peft_trial", str(folder / JOB)]
    with (folder / LOG).open("w+", encoding="utf-8") as log:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as child:
            failure = _listen(child, said)
        log.seek(0)
        last = ([line.strip() for line in log if line.strip()] or [f"it ended with code {child.returncode}"])[-1]
    if failure or child.returncode:
        raise LudusError(failure or last)


def _listen(child: subprocess.Popen, said: Say) -> str | None:
    failure = None
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith(MARK):
            news = json.loads(line[len(MARK) :])
            failure = news.get("failed", failure)
            said(news)
        elif line.strip():
            said({"line": line.rstrip()})
    return failure


class _Work:
    """One bench on its way: what is known, what is to be done, and how far it is."""

    def __init__(self, bench: Bench, trial: Trial) -> None:
        self.bench, self.trial = bench, trial
        self.file = bench.output / RESULTS
        self.variants = variants(bench.kinds, bench.quantise, bench.rank)
        self.path = find(bench.model).folder
        self.known = self._read()
        self.texts = general(Path(bench.text).expanduser() if bench.text else None, bench.bytes)
        atomic_write(bench.output / TEXTS, json.dumps(self.texts))
        self.decides = {
            "model": sha256_artefact(base_of(self.path)),
            "data": _hash(bench.data),
            "texts": sha256_json(self.texts),
            **{name: getattr(bench, name) for name in ("steps", "rows", "context", "held_out", "most_held_out")},
            **{name: getattr(bench, name) for name in ("precision", "device")},
        }
        self.runs: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, str] = {}

    def done(self) -> dict[str, Any]:
        """Do all of it; return what is known then."""
        bases = {how: self._base(how) for how in dict.fromkeys(each.quantise for each in self.variants)}
        dense = bases.get("none") or self._base("none")
        waiting = []
        for variant in self.variants:
            rate, reason = self._rate(variant, dense["parameters"])
            if rate is None:
                continue
            job = self._job(variant, rate, dense["general"])
            seeds = [seed for seed in range(self.bench.seeds) if not self._is_known(job, seed, reason)]
            if seeds:
                waiting.append((replace(job, seeds=seeds), reason))
        if self.runs:
            say(f"{len(self.runs)} runs are known from {self.file}")
        total = sum(len(job.seeds) for job, _ in waiting) * self.bench.steps
        with Meter("peft bench", total) as meter:
            for job, reason in waiting:
                self._try(job, reason, meter)
        self._write(bases | {"none": dense})
        return read_json(self.file)

    def _rate(self, variant: Variant, parameters: int) -> tuple[float, str]:
        for name in (variant.name, variant.rated):
            if name in self.bench.rates:
                return self.bench.rates[name], "as set"
        return default_rate(variant.rated, parameters)

    def _job(self, variant: Variant, rate: float, before: dict[str, Any] | None) -> Job:
        bench = self.bench
        return Job(
            name=variant.name,
            adapter=variant.adapter,
            quantise=variant.quantise,
            rate=rate,
            seeds=[],
            model=str(self.path),
            data=bench.data,
            texts=str(bench.output / TEXTS),
            before=before,
            **{name: getattr(bench, name) for name in ("steps", "rows", "context", "held_out", "most_held_out")},
            **{name: getattr(bench, name) for name in ("precision", "device", "threads")},
        )

    def _base(self, how: str) -> dict[str, Any]:
        """Measure the model as it is, once for each way of holding it."""
        key = sha256_json({**self.decides, "base": how})
        found = self.known.get(key)
        if found is None:
            news: list[dict[str, Any]] = []
            say(f"measuring the base{'' if how == 'none' else f' on {how}'}")
            variant = Variant("base" if how == "none" else f"base on {how}", {"kind": "none"}, how, "full")
            self.trial(self._job(variant, 0.0, None), self.bench.output, news.append)
            for each in news:
                if "line" in each:  # such as what was left out of the data; every trial would say it again
                    say(each["line"])
            found = next(each["run"] for each in news if "run" in each) | {"key": key}
            self.known[key] = found
            self._write({})
        return found

    def _key(self, job: Job, seed: int) -> str:
        facts = {"adapter": job.adapter, "quantise": job.quantise, "rate": job.rate, "seed": seed}
        return sha256_json({**self.decides, **facts})

    def _is_known(self, job: Job, seed: int, reason: str) -> bool:
        key = self._key(job, seed)
        if key in self.known:
            self.runs[key] = self.known[key] | {"name": job.name, "rate_reason": reason}
        return key in self.known

    def _try(self, job: Job, reason: str, meter: Meter) -> None:
        """Try all missing seeds of a variant; a failure is kept with its reason, and the others go on."""
        begun, finished = meter.done, 0

        def said(news: dict[str, Any]) -> None:
            nonlocal finished
            if "step" in news:
                meter.update(begun + finished * job.steps + news["step"], trying=job.name, seed=news["seed"])
            if "run" in news:
                finished += 1
                key = self._key(job, news["run"]["seed"])
                self.runs[key] = self.known[key] = news["run"] | {"key": key, "rate_reason": reason}
                self._write({})
                meter.update(begun + finished * job.steps)

        try:
            self.trial(job, self.bench.output, said)
        except LudusError as problem:
            self.failed[job.name] = str(problem)
            say(f"{job.name} failed: {problem}")
        meter.update(begun + len(job.seeds) * job.steps)

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self.file.is_file():
            return {}
        content = read_json(self.file)
        return {each["key"]: each for part in ("bases", "runs", "earlier") for each in content.get(part, [])}

    def _write(self, bases: dict[str, dict[str, Any]]) -> None:
        """Keep all that is known; what this bench does not ask for is kept apart, as `earlier`."""
        shown = {each["key"] for each in bases.values()} | set(self.runs)
        bench = {name: value for name, value in vars(self.bench).items() if name != "output"}
        content = {
            "bench": {**bench, "kinds": [each.name for each in self.variants]},
            "bases": list(bases.values()),
            "runs": list(self._in_order()),
            "failed": self.failed,
            "earlier": [each for key, each in self.known.items() if key not in shown],
        }
        write_json(self.file, content)

    def _in_order(self) -> Iterator[dict[str, Any]]:
        for variant in self.variants:
            found = [each for each in self.runs.values() if each["name"] == variant.name]
            yield from sorted(found, key=lambda each: each["seed"])


def _hash(data: str) -> str:
    path = Path(data).expanduser()
    return sha256_artefact(path) if path.exists() else data
