"""A generation-bound study on ray workers against the same on one thread of this process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.options import MODEL, Options
from benchmarks.sections import Check, Section, table

_RUN = """
import sys, torch
torch.set_num_threads(int(sys.argv[1]))
from mechsafety.experiments.study.config import load_config
from mechsafety.experiments.study.experiment import run_study
run_study(load_config(sys.argv[2]), sys.argv[3])
"""
_STUDY = """
systems: [{model}]
limit: {limit}
fit: 16
validation: 8
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


def section(options: Options) -> Section | None:
    """Seconds of each engine in a process of its own, start and loading included; None without ray."""
    try:
        import ray  # noqa: F401
    except ModuleNotFoundError:
        return None
    seconds = {name: _seconds(options, *engine) for name, engine in _ENGINES.items()}
    base, one, two, threads = seconds.values()
    rows = [[name, f"{found:.0f}", f"{base / found:.2f}x"] for name, found in seconds.items()]
    return Section(
        name="engine",
        title="Engines: local and ray",
        quick=options.quick,
        body="One study whose time goes into answers, on the packaged model; whole processes, each once.\n\n"
        + table(["engine", "seconds", "speed"], rows),
        checks=(
            Check(
                what="two ray workers against one, a thread each",
                wanted="at least 1.6x",
                found=f"{one / two:.2f}x (two threads of one process: {base / threads:.2f}x)",
                met=one / two >= 1.6,
            ),
            Check(
                what="one ray worker against the local engine",
                wanted="at most 10 % longer",
                found=f"{100 * (one / base - 1):+.0f} %",
                met=one / base <= 1.1,
            ),
        ),
    )


def _seconds(options: Options, threads: int, engine: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "study.yaml"
        sizes = {"limit": options.size(32, 4), "tokens": options.size(256, 16)}
        config.write_text(_STUDY.format(model=MODEL, **sizes) + engine)
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", _RUN, str(threads), str(config), str(Path(folder) / "run")],
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )
        return time.perf_counter() - started
