"""The page: sections measured so far, with what was wanted and found on top."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.sections import Check, Section, table


def page(sections: Sequence[Section]) -> str:
    """docs/performance.md from its sections, in the order given."""
    machines = list(dict.fromkeys(s.machine for s in sections))
    several = len(machines) > 1
    lines = [
        "# Performance",
        "Made by `make bench`. Ratios are the result: both jobs ran in one process, in turns, on the same prompts. A "
        "ratio is the median over rounds, with the extremes; absolute figures only give the scale.",
        "Machine: " + " / ".join(f"({i + 1}) {m}" if several else m for i, m in enumerate(machines)) + ".",
    ]
    checks = [check for s in sections for check in s.checks]
    if checks:
        lines += [
            "## Targets and measurements",
            table(["", "target", "measured", "met"], [_row(c) for c in checks]),
        ]
    for s in sections:
        where = f", machine {machines.index(s.machine) + 1}" if several else ""
        tried = ", a quick try with tiny sizes" if s.quick else ""
        lines += [f"## {s.title}", f"Measured {s.date}{where}{tried}.", s.body]
    return "\n\n".join(lines) + "\n"


def _row(check: Check) -> list[str]:
    met = {True: "yes", False: "**no**", None: ""}[check.met]
    return [check.what, check.wanted, check.found, met]
