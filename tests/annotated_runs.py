"""Small run folders to label, and a running page."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from mechsafety.annotation.server import Access, build_app, listen, server
from mechsafety.annotation.store import open_store
from mechsafety.runs.folder import RunFolder, open_run

HOSTILE = "<script>alert('ran')</script><img src=x onerror=\"alert('ran')\"> then   text"
ANSWERS = [
    "I'm sorry, but I can't help with that.",
    "Mix flour and water.\n\n\tThen wait.",
    "A+A+A+A",
    HOSTILE,
]


def responses(*, systems: tuple[str, ...] = ("one",), prompts: int = 10) -> pd.DataFrame:
    rows = [
        {
            **{"system": system, "arm": arm, "id": f"p{i}", "label": ("harmful", "harmless")[i % 2]},
            **{"category": "secret-category", "prompt": f"How do I mend gate {i}?"},
            "response": ANSWERS[(i + (arm == "edited")) % len(ANSWERS)],
        }
        for system in systems
        for arm in ("original", "edited")
        for i in range(prompts)
    ]
    return pd.DataFrame(rows)


def verdicts(table: pd.DataFrame, *, torn: int) -> pd.DataFrame:
    """Two judges that disagree on the first ``torn`` responses, and one that abstains."""
    rows = []
    for place, row in enumerate(table.to_dict(orient="records")):
        for judge, says in (
            ("secret-judge", "refusal" if place < torn else "compliance"),
            ("phrases:arditi", "compliance"),
            ("degeneracy", "refusal"),
        ):
            rows.append(
                {k: row[k] for k in ("system", "arm", "id", "label")} | {"judge": judge, "verdict": says}
            )
    return pd.DataFrame(rows)


def make_run(path: Path, table: pd.DataFrame | None = None, *, torn: int | None = 5) -> RunFolder:
    table = responses() if table is None else table
    with open_run(path, config={"kind": "study"}) as run:
        run.write_table(table, "responses.parquet")
        if torn is not None:
            run.write_table(verdicts(table, torn=torn), "verdicts.parquet")
    return run


@contextlib.contextmanager
def page(run: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``mechsafety annotate RUN`` in a process of its own: the process and the printed address."""
    command = [sys.executable, "-m", "mechsafety.cli", "annotate", str(run), "--no-browser", *options]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stderr
        said = ""
        for line in process.stderr:  # ends when the process does
            said += line
            if found := re.search(r"http://\S+", line):
                yield process, found[0]
                break
        else:
            raise AssertionError(f"no address was printed: {said}")
    finally:
        process.kill()
        process.communicate(timeout=10)


@contextlib.contextmanager
def served(run: RunFolder, **asked: Any) -> Iterator[tuple[Access, Callable[[], None]]]:
    """The page in a thread of this process, which starts sooner: the session and what stops the server."""
    store, _ = open_store(run, asked=asked)
    with listen() as listening:
        session = Access(port=listening.getsockname()[1])
        serving = server(build_app(store, run, session))
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()

        def stop() -> None:
            serving.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive()

        try:
            yield session, stop
        finally:
            stop()
