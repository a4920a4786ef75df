"""The steps of a run: check, open its folder, let the experiment work, write its tables."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mechsafety.core.arguments import as_path
from mechsafety.core.progress import Progress
from mechsafety.experiments.base import Experiment
from mechsafety.experiments.config import ENGINE_FIELDS, EngineConfig
from mechsafety.experiments.parallel import divided
from mechsafety.experiments.result import RESPONSES, Result
from mechsafety.experiments.session import ANSWERS, Session
from mechsafety.prompts.splits import record_repeated
from mechsafety.runs.folder import MANIFEST, RunFolder, open_run, pinned_date, read_run, record_date


def run_experiment(
    experiment: Experiment[Any],
    out: str | Path,
    *,
    say: Progress = lambda _: None,
    allow_other_versions: bool = False,
) -> Result:
    """Run ``experiment`` in the folder ``out``, or go on where it was interrupted.

    ``say`` receives one line per stage. Raises :class:`MechsafetyError` for whatever the experiment refuses, and for
    a folder that holds another run (:func:`open_run`).
    """
    out = as_path(out)
    day = pinned_date(out, getattr(experiment.config, "date", None))
    if _in_this_process(experiment, say):
        _run(experiment, out, day, say, allow_other_versions)
    else:
        from mechsafety.experiments.remote.driver import with_workers

        with with_workers(experiment, out, day, allow_other_versions=allow_other_versions) as remote:
            _run(remote, out, day, say, allow_other_versions)
    return experiment.result_type(out, type(experiment))


def _in_this_process(experiment: Experiment[Any], say: Progress) -> bool:
    config = experiment.config
    if not isinstance(config, EngineConfig) or not config.on_workers:
        return True
    if config.engine == "ray" or divided(experiment):
        return False
    say(f"{experiment.kind} has no tasks of its own, and runs in this process")
    return True


def _run(experiment: Any, out: Path, day: str, say: Progress, allow_other_versions: bool) -> None:
    """The steps of a run; ``experiment`` is one, or has its methods and lets workers do them."""
    started, config = time.perf_counter(), experiment.config
    if experiment.loads_early:
        experiment.require_fit(day)
    experiment.prepare(day, say)
    fields = config.model_dump(mode="json", exclude=set(ENGINE_FIELDS))
    asked = fields | {"kind": experiment.kind, **experiment.bound()}
    before = asked | _as_before(out, experiment.may_change)
    with open_run(
        out, config=before, sources=experiment.sources, allow_other_versions=allow_other_versions
    ) as run:
        if before != asked:
            run.record("config", asked)
        if hasattr(config, "date"):
            record_date(run, day)
        record_repeated(run, say, *experiment.prompt_sets())
        if not experiment.loads_early:
            experiment.require_fit(day)
        _record_threads(run, experiment)
        _require_keys(run, config)
        session = Session(
            run=run,
            day=day,
            say=say,
            loading=experiment.loading,
            allow_other_versions=allow_other_versions,
            models=list(experiment.models()),
        )
        for name, table in experiment.work(session).items():
            run.write_table(table, experiment.tables[name])
        if answers := run.parts(ANSWERS):
            run.write_table(pd.concat(map(pd.read_parquet, answers), ignore_index=True), RESPONSES)
        run.record_item("timings", "last_session_s", round(time.perf_counter() - started, 1))


def _require_keys(run: RunFolder, config: Any) -> None:
    """Raise MechsafetyError where a judge of a run that is not finished will be asked with a key that is not set."""
    named = getattr(config, "judges", None) or [getattr(config, "judge", None)]
    asked = [judge for judge in named if isinstance(judge, str) and "endpoint:" in judge]
    if asked and "last_session_s" not in run.manifest.get("timings", {}):
        from mechsafety.judges.panel import require_keys  # which loads numpy

        require_keys(asked)


def _record_threads(run: RunFolder, experiment: Any) -> None:
    """How many threads of torch work in a process: it may change the last digits, and what was made is gone on with."""
    now, before = {"engine": experiment.engine, "threads": experiment.threads}, run.manifest.get("engine", [])
    if now not in before:
        run.record("engine", [*before, now])


def _as_before(out: Path, fields: Sequence[str]) -> dict[str, Any]:
    """These fields of the configuration as the run in ``out`` has them, so that a change of them is no other run."""
    known = read_run(out).manifest["config"] if fields and (out / MANIFEST).is_file() else {}
    return {name: known[name] for name in fields if name in known}
