"""Which systems keep refusing when directions are removed, in a run folder: what ``mechsafety ladder`` does.

The way of the data, for each system, which is loaded alone: fit prompts -> refusal subspace of the layer that
validation prompts choose -> 1, 2, 4, 8 of its directions projected out everywhere, and as many random ones -> greedy
answers to report prompts -> verdicts, paired tests, what the removal costs. Then all systems are compared. Every state
is kept when it is done; an interrupted run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechsafety.core.errors import MechsafetyError, NotFiniteError, RefusedRunError
from mechsafety.experiments.comparison.experiment import compare, read_comparison
from mechsafety.experiments.ladder.config import COMPARE, TABLES, LadderConfig
from mechsafety.experiments.ladder.links import files_read, read_regions
from mechsafety.experiments.ladder.systems import FIT, LadderSetting, RungAware
from mechsafety.experiments.ladder.work import LadderWork
from mechsafety.judges.registry import judge_sources, load_judge
from mechsafety.models.adapters import adapter_folder
from mechsafety.models.loading import load_model, locate, parse_spec
from mechsafety.models.provenance import of_files, of_models
from mechsafety.prompts.fed import require_all_fit
from mechsafety.prompts.prompt_set import PURPOSES, PromptSet, load_prompts
from mechsafety.prompts.splits import record_repeated, require_splits
from mechsafety.runs.folder import Provenance, RunFolder, open_run, pinned_date, read_run, record_date

if TYPE_CHECKING:
    import plotly.graph_objects as go

Say = Callable[[str], None]
_RECORD = "ladder"
_SUBSPACE = 3
"""Directions of the subspaces whose angles are compared, where the prompts suffice."""


@dataclass(frozen=True, kw_only=True)
class LadderRun:
    """A finished ladder: where it lies, its tables by name, and what was left out and why.

    Tables are those of :data:`TABLES` that there are, and the comparison's: ``cosines``, ``angles``,
    ``cka``, ``transfer``.
    """

    path: Path
    tables: dict[str, pd.DataFrame]
    notes: tuple[str, ...]

    @property
    def layer(self) -> int | None:
        """The layer at which the comparison shows matrices; None where nothing was compared by layer."""
        if "cosines" in self.tables or "angles" in self.tables:
            return read_comparison(self.path / COMPARE).layer
        return None

    def figures(self) -> dict[str, go.Figure]:
        """Every figure, by file name."""
        from mechsafety.experiments.ladder.figures import ladder_figures

        return ladder_figures(self.tables, layer=self.layer)

    def _repr_html_(self) -> str:
        survival = self.tables["survival"]
        harmful = survival[survival["label"] == "harmful"]
        refused = harmful.pivot_table(
            index=["system", "kind"], columns="directions", values="refused", sort=False
        )
        shown = [
            f"<h4>Refused harmful prompts, by directions removed</h4>{refused.round(3).to_html(border=0)}",
            f"<h4>breaking</h4>{self.tables['breaking'].round(3).to_html(index=False, border=0)}",
            *(f"<p>{escape(note)}</p>" for note in self.notes),
        ]
        return f"<b>Ladder</b> in {escape(str(self.path))}{''.join(shown)}"


def run_ladder(
    config: LadderConfig,
    out: Path | str,
    *,
    say: Say = lambda _: None,
    allow_other_versions: bool = False,
) -> LadderRun:
    """Run ``config`` in the folder ``out``, or go on where it was interrupted.

    ``config.beside`` may change from one call to the next: it concerns the report alone. Raises
    :class:`MechsafetyError` for a prompt set without fit, validation or report prompts of both labels, more directions
    than fit prompts or dimensions, a model, judge or adapter that does not exist, ``beside`` folders that hold no
    finished ladder, a regions run of another model, and whatever loading a model raises.
    """
    out = Path(out)
    prompts = load_prompts(config.prompts)
    _check_prompts(prompts, config)
    for spec in (*config.systems, *([config.base] if config.base is not None else [])):
        _require_model(spec)
    for other in config.beside:
        read_ladder(Path(other))
    regions = None if config.regions is None else read_regions(Path(config.regions), config.systems)
    day = pinned_date(out, config.date)
    judge = load_judge(config.judge, models=lambda spec: load_model(spec, device=config.device, date=day))
    asked = config.model_dump(mode="json") | {"kind": "ladder", "prompts_sha256": prompts.sha256()}
    started = time.perf_counter()
    with open_run(
        out,
        config=asked | {"beside": _beside_before(out, config)},
        sources=lambda: _sources(config, regions),
        allow_other_versions=allow_other_versions,
    ) as run:
        run.record("config", asked)
        record_repeated(run, say, prompts)
        record_date(run, day)
        setting = LadderSetting(
            config=config, run=run, prompts=prompts, judge=RungAware(judge), regions=regions, day=day
        )
        require_all_fit(config.systems, setting.read, template=config.template, date=day)
        work = LadderWork(setting=setting, say=say)
        tables = work.tables()
        for name, table in tables.items():
            run.write_table(table, TABLES[name])
        compared, left_out = _compare(
            config, prompts, run, day, say, allow_other_versions=allow_other_versions
        )
        facts = {
            "systems": work.facts,
            "tables": list(tables),
            "compared": compared,
            "notes": [*work.notes, *left_out],
        }
        run.record(_RECORD, facts)
        run.record_item("timings", "last_session_s", round(time.perf_counter() - started, 1))
    return read_ladder(out)


def read_ladder(path: Path | str) -> LadderRun:
    """A finished ladder from its folder. Raises :class:`MechsafetyError` for anything else."""
    path = Path(path)
    run = read_run(path)
    kind = run.manifest["config"].get("kind", "study")
    if kind != "ladder":
        raise MechsafetyError(
            f"{str(path)!r} is a run of kind {kind!r}: a ladder is what mechsafety ladder made"
        )
    facts = run.manifest.get(_RECORD)
    if facts is None:
        raise MechsafetyError(f"the ladder {str(path)!r} is not finished: run the same command again")
    tables = {name: run.read_table(TABLES[name]) for name in facts["tables"]}
    if facts["compared"]:
        tables |= read_comparison(path / COMPARE).tables
    return LadderRun(path=path, tables=tables, notes=tuple(facts["notes"]))


def _check_prompts(prompts: PromptSet, config: LadderConfig) -> None:
    require_splits(prompts, PURPOSES, name=config.prompts)
    most = min(FIT, len(prompts.to_estimate.harmful))
    if max(config.counts) > most:
        raise MechsafetyError(
            f"{max(config.counts)} directions of {most} harmful fit prompts: these span no more than {most}"
        )


def _require_model(spec: str) -> None:
    """What can be told of a model without loading it: an unknown one must not stop a run that is half done."""
    parsed = parse_spec(spec)
    locate(parsed)
    if parsed.adapter is not None:
        adapter_folder(parsed.adapter)


def _sources(config: LadderConfig, regions: RunFolder | None) -> dict[str, Provenance]:
    base = [] if config.base is None else [config.base]
    return (
        of_models(*config.systems, *base, **config.loading)
        | judge_sources(config.judge, loading={"device": config.device})
        | ({} if regions is None else {"regions run": of_files(*files_read(regions))})
    )


def _beside_before(out: Path, config: LadderConfig) -> Any:
    """The other runs that the folder's own run names, so that a change of them is no other configuration."""
    try:
        return read_run(out).manifest["config"].get("beside", [])
    except MechsafetyError:
        return list(config.beside)


def _compare(
    config: LadderConfig,
    prompts: PromptSet,
    run: RunFolder,
    day: str,
    say: Say,
    *,
    allow_other_versions: bool,
) -> tuple[bool, list[str]]:
    """Cosines, angles, CKA and transfer between all systems, in a run of its own.

    Returns whether there is such a comparison, and what could not be had.
    """
    if len(config.systems) < 2:
        return False, ["One system alone: there is nothing to compare it with."]
    say(f"comparing {len(config.systems)} systems")
    # Halves of a class must span the compared subspaces, their mean taken off.
    half = min(config.compare_limit, len(prompts.to_estimate.harmful), len(prompts.to_estimate.harmless)) // 2
    try:
        found = compare(
            config.systems,
            prompts,
            out=run.path / COMPARE,
            seed=config.seed,
            limit=config.compare_limit,
            k=max(1, min(_SUBSPACE, half - 1)),
            **config.loading,
            date=day,
            say=say,
            allow_other_versions=allow_other_versions,
        )
    except (NotFiniteError, RefusedRunError):
        raise  # numbers that are none, or parts of something else: nothing to note and pass over
    except MechsafetyError as error:
        return False, [f"The systems were not compared: {error}."]
    return True, list(found.notes)
