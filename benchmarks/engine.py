"""A generation-bound study on ray workers against the same on one thread of this process; at most six minutes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.options import MODEL, Options
from benchmarks.sections import Check, Section, table

_RUN = """
import sys, torch
torch.set_num_threads(int(sys.argv[1]))
from mechsafety.experiments.study.config import load_config
from mechsafety.experiments.study.experiment import run_study
run_study(load_config(sys.argv[2]), sys.argv[3], progress=False)
"""
_STUDY = """
systems: [{model}]
limit: {limit}
fit: 8
validation: 4
layer: 20
fit_on: labels
confirm: 0
controls: 0
judges: [rules]
selfjudge: false
nll: false
batch_size: 8
max_new_tokens: {tokens}
"""
_ENGINES = {
    "local, one thread": (1, ""),
    "ray, one worker of one thread": (1, "engine: ray\nworkers: 1\n"),
    "ray, two workers of one thread": (1, "engine: ray\nworkers: 2\n"),
    "local, two threads": (2, ""),
}


@dataclass(frozen=True, kw_only=True)
class _Took:
    """Seconds of a whole process, and those from its first finished batch of answers to its tables."""

    whole: float
    work: float


def section(options: Options) -> Section | None:
    """Seconds of each engine in a process of its own; None without ray."""
    try:
        import ray  # noqa: F401
    except ModuleNotFoundError:
        return None
    took = {name: _took(options, *engine) for name, engine in _ENGINES.items()}
    local, one, two, threads = took.values()
    rows = [
        [name, f"{found.whole:.0f}", f"{found.work:.0f}", f"{local.work / found.work:.2f}x"]
        for name, found in took.items()
    ]
    return Section(
        name="engine",
        title="Engines: local and ray",
        quick=options.quick,
        body="One study whose time goes into answers, on the packaged model; whole processes, each once. What a run "
        "takes but once (imports, ray, workers, the first model) stands in the whole alone.\n\n"
        + table(["engine", "seconds, whole", "from the first batch on", "speed from there"], rows),
        checks=(
            Check(
                what="two ray workers against one, a thread each",
                wanted="at least 1.6x",
                found=f"{one.work / two.work:.2f}x (whole: {one.whole / two.whole:.2f}x; two threads of one process "
                f"against one: {local.work / threads.work:.2f}x)",
                met=one.work / two.work >= 1.6,
            ),
            Check(
                what="one ray worker against the local engine",
                wanted="at most 10 % longer",
                found=f"{_longer(one.work, local.work)} (whole: {_longer(one.whole, local.whole)})",
                met=one.work / local.work <= 1.1,
            ),
        ),
    )


def _longer(one: float, other: float) -> str:
    return f"{100 * (one / other - 1):+.0f} %"


def _took(options: Options, threads: int, engine: str) -> _Took:
    with tempfile.TemporaryDirectory() as folder:
        config, run = Path(folder) / "study.yaml", Path(folder) / "run"
        sizes = {"limit": options.size(16, 4), "tokens": options.size(128, 8)}
        config.write_text(_STUDY.format(model=MODEL, **sizes) + engine)
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", _RUN, str(threads), str(config), str(run)],
            check=True,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
        )
        whole = time.perf_counter() - started
        first = min(path.stat().st_mtime for path in (run / "parts" / "batches").rglob("*.parquet"))
        return _Took(whole=whole, work=(run / "rates.csv").stat().st_mtime - first)
