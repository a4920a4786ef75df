"""People label a run's responses, without knowing whose they are."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser
from pathlib import Path
from typing import Any

import click

from mechsafety.cli.base import Shown, command, records, say
from mechsafety.core.errors import MechsafetyError


@command("annotate", example="mechsafety annotate runs/default --labels 100 --plan disagreement")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--labels", type=int, default=None, metavar="N", help="Responses to label [default: 100].")
@click.option(
    "--plan",
    "kind",
    type=click.Choice(["uniform", "disagreement"]),
    default=None,
    help="Draw all alike, or more where judges disagree [default: uniform].",
)
@click.option(
    "--balanced/--not-balanced", default=None, help="Equally many of every system and arm [default: not]."
)
@click.option("--seed", type=int, default=None, help="Of the draw and the order [default: 0].")
@click.option("--annotator", default=None, metavar="NAME", help="Who labels; else the page asks.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, metavar="P", help="[default: a free one]")
@click.option("--no-browser", is_flag=True, help="Print the address only.")
@click.option(
    "--export",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Write the labels as .csv, or as .jsonl for inspect_ai, and stop.",
)
def _annotate(
    run: Path,
    kind: str | None,
    labels: int | None,
    balanced: bool | None,
    seed: int | None,
    annotator: str | None,
    port: int,
    no_browser: bool,
    export: Path | None,
) -> Shown:
    """Label the responses of RUN by hand on a local page, blind to system, arm and judges.

    The first call draws the sample and keeps it in RUN; later calls go on with it. Every annotator gets the same
    responses in another order. Every answer is on the disk before the next is shown; end with Ctrl-C.
    """
    from mechsafety.annotation.export import export_labels, load_annotations
    from mechsafety.runs.folder import read_run

    folder = read_run(run)
    given = {"kind": kind, "labels": labels, "balanced": balanced, "seed": seed}
    asked = {key: value for key, value in given.items() if value is not None}
    if export is not None:
        if asked:
            raise MechsafetyError("--export writes what was labelled: leave the options of the plan out")
        written = [str(path) for path in export_labels(folder, export, annotator=annotator)]
        return {"run": str(run), "written": written}, "\n".join(written)
    _serve(folder, asked=asked, annotator=annotator, port=port, browser=not no_browser)
    found = load_annotations(folder)
    facts = {
        **{"run": str(run), "store": str(found.path / "annotations.sqlite"), "sampled": found.sampled},
        **{"labels": len(found.to_frame()), "progress": records(found.progress)},
    }
    people = [
        f"{row['annotator']:20} {row['labelled']} of {found.sampled} labelled, {row['left']} left"
        for row in facts["progress"]
    ]
    # Everything that was answered is kept, so that there is nothing to go on about but the export.
    then = (
        f"next:   mechsafety annotate {run} --export labels.csv" if len(found.to_frame()) else "no labels yet"
    )
    return facts, "\n".join([*people, f"labels: {facts['store']}", then])


def _serve(folder: Any, *, asked: dict[str, Any], annotator: str | None, port: int, browser: bool) -> None:
    from mechsafety.annotation.server import Access, build_app, listen, server
    from mechsafety.annotation.store import open_store, require_name

    name = require_name(annotator) if annotator is not None else None
    with listen(port) as listening:
        store, notes = open_store(folder, asked=asked)
        session = Access(port=listening.getsockname()[1])
        app = build_app(store, folder, session)
        for note in notes:
            say(note)
        say(f"{len(store.items())} responses to label ({store.plan.describe()})")
        say(f"open once:  {session.address(name)}")
        say("Every answer is saved at once. Ctrl-C ends; the same command goes on.")
        if browser and _has_display():
            threading.Thread(target=webbrowser.open, args=(session.address(name),), daemon=True).start()
        try:
            server(app).run(sockets=[listening])
        except KeyboardInterrupt:
            say("")


def _has_display() -> bool:
    """Without one, webbrowser starts a text browser inside this terminal."""
    return sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
