"""How far a run is, from another shell."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import click

from mechsafety.cli.base import Shown, command


@command("status", example="mechsafety status runs/paper")
@click.argument("run", type=click.Path(path_type=Path))
def _status(run: Path) -> Shown:
    """List by stage how much of RUN is made, and what its workers are at.

    Works while the run is under way, and after it; nothing in the folder is changed.
    """
    from mechsafety.experiments.status import run_status

    facts = run_status(run)
    return facts, _text(facts)


def _text(facts: dict[str, Any]) -> str:
    stages = facts["stages"]
    width = max(map(len, stages), default=0)
    lines = [f"{facts['run']} ({facts['kind']}): {'finished' if facts['finished'] else 'not finished'}"]
    for name, one in stages.items():
        rate = f"  {one['per_minute']:g} a minute" if one.get("per_minute") is not None else ""
        lines.append(f"  {name:<{width}}  {one['done']} of {one['known']}{rate}")
    if facts["workers"]:
        age = max(0, round(time.time() - facts["written"]))
        lines.append(f"workers, {age} s ago:")
        lines += [f"  {name}  {task or 'idle'}" for name, task in facts["workers"].items()]
    if facts["seconds_left"] is not None:
        lines.append(f"about {facts['seconds_left']} s left")
    lines += [f"failed: {name}: {why}" for name, why in facts["failed_tasks"].items()]
    because = Counter((name.split(" · ")[0], why) for name, why in facts["blocked_tasks"].items())
    lines += [f"cannot be made: {n} of {stage}, because {why} failed" for (stage, why), n in because.items()]
    return "\n".join(lines)
