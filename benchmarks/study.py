"""Seconds and memory that a finished default study recorded about itself."""

from __future__ import annotations

import json

from benchmarks.options import Options
from benchmarks.sections import Section, table


def section(options: Options) -> Section | None:
    """The study's own record; None where there is no run in ``options.study``."""
    manifest = options.study / "manifest.json"
    timings = json.loads(manifest.read_text()).get("timings", {}) if manifest.is_file() else {}
    if not timings:
        return None
    rows = [
        [f"{name}: {stage}", f"{seconds:.1f}"]
        for name, value in timings.items()
        if isinstance(value, dict)
        for stage, seconds in value.items()
    ]
    whole, memory = timings.get("last_session_s", float("nan")), timings.get("peak_memory_mb", 0) / 1000
    return Section(
        name="study",
        title="The default study",
        quick=options.quick,
        body="\n\n".join(
            [
                "Recorded by the run itself (`manifest.json`).",
                table(["part", "seconds"], rows),
                f"Whole run: {whole:.0f} s; peak memory {memory:.2f} GB.",
            ]
        ),
    )
