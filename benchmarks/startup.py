"""How long the command line takes to answer."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from benchmarks.options import Options
from benchmarks.sections import Check, Section, table

_COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import mechsafety": ["-c", "import mechsafety"],
    "mechsafety --help": ["-m", "mechsafety.cli", "--help"],
}
_WANTED = 0.1
"""Seconds above a bare interpreter."""


def section(options: Options) -> Section:
    """Median seconds of a bare interpreter, of the import and of ``--help``."""
    seconds: dict[str, list[float]] = {name: [] for name in _COMMANDS}
    for _ in range(options.size(5, 1)):
        for name, arguments in _COMMANDS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - started)
    found = {name: statistics.median(values) for name, values in seconds.items()}
    bare = found["python -c pass"]
    return Section(
        name="startup",
        title="Start-up",
        quick=options.quick,
        body=table(["command", "seconds"], [[f"`{name}`", f"{value:.2f}"] for name, value in found.items()]),
        checks=tuple(
            Check(
                what=f"`{name}`",
                wanted=f"{_WANTED} s or less above a bare interpreter",
                found=f"{value - bare:.2f} s",
                met=value - bare <= _WANTED,
            )
            for name, value in found.items()
            if name != "python -c pass"
        ),
    )
