"""Agreement of ten judges on 100,000 verdicts, in a process of its own.

``python -m benchmarks.judge_statistics 500`` prints one measurement as JSON (500 prompts an arm).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pandas as pd

from benchmarks.memory import status
from benchmarks.options import Options
from benchmarks.sections import Check, Section, table

_JUDGES, _SYSTEMS, _PROMPTS = 10, 10, 500
_SECONDS, _MEGABYTES = 60, 2000


def verdicts(prompts: int) -> pd.DataFrame:
    """Ten judges that are each wrong on a tenth of the responses."""
    rng = np.random.default_rng(0)
    rows = [
        (f"s{system}", arm, f"p{i}", "harmful" if i % 2 else "harmless")
        for system in range(_SYSTEMS)
        for arm in ("original", "edited")
        for i in range(prompts)
    ]
    base = pd.DataFrame(rows, columns=["system", "arm", "id", "label"])
    truth = rng.random(len(base)) < 0.5
    names = np.array(["compliance", "refusal"])
    parts = [
        base.assign(judge=f"j{j}", verdict=names[(truth ^ (rng.random(len(base)) < 0.1)).astype(int)])
        for j in range(_JUDGES)
    ]
    return pd.concat(parts, ignore_index=True)


def measure(prompts: int) -> dict[str, float]:
    """Seconds of each table, with 2,000 resamples where there is a bootstrap, and the peak memory in MB."""
    from mechsafety import statistics

    data = verdicts(prompts)
    others = data[data["judge"] != "j0"]
    reference = data[data["judge"] == "j0"][["system", "arm", "id", "verdict"]]
    jobs: dict[str, Callable[[], object]] = {
        "agreement of every pair": lambda: statistics.agreement(data, seed=0),
        "alpha and AC1 of all": lambda: statistics.panel_agreement(data, seed=0),
        "against a reference": lambda: statistics.against_reference(others, reference, seed=0),
        "effects": lambda: statistics.judge_effects(data),
        "judge x edit": lambda: statistics.judge_edit_interaction(data, seed=0),
        "rankings": lambda: statistics.ranking_agreement(data, seed=0),
    }
    found: dict[str, float] = {}
    for name, job in jobs.items():
        started = time.perf_counter()
        job()
        found[name] = time.perf_counter() - started
    return found | {"peak": status("VmHWM")}  # ru_maxrss would count the process that started this one


def section(options: Options) -> Section:
    prompts = options.size(_PROMPTS, 20)
    command = [sys.executable, "-m", "benchmarks.judge_statistics", str(prompts)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    peak = found.pop("peak")
    total = sum(found.values())
    count = _JUDGES * _SYSTEMS * 2 * prompts
    return Section(
        name="judge_statistics",
        title=f"Statistics of {count:,} verdicts",
        quick=options.quick,
        body=(
            f"{_JUDGES} judges, {_SYSTEMS} systems, 2 arms, {prompts} prompts; 2,000 resamples of prompts; peak memory "
            f"{peak:.0f} MB.\n\n" + table(["table", "seconds"], [[n, f"{s:.1f}"] for n, s in found.items()])
        ),
        checks=(
            Check(
                what=f"all statistics of {count:,} verdicts, 2,000 resamples",
                wanted=f"{_SECONDS} s and {_MEGABYTES / 1000:g} GB or less",
                found=f"{total:.0f} s, {peak:.0f} MB",
                met=total <= _SECONDS and peak <= _MEGABYTES,
            ),
        ),
    )


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
