"""Safety-critical regions of one model as an experiment: what ``mechsafety regions`` runs.

Own refusals and own answers -> SNIP scores and Grams of both, in one pass each -> overlap and similarity of what safety
and utility need -> removals, each with random controls -> outcomes, attacks and utility of the model without
them -> the sweet spot -> links with the refusal direction, heads, and fine-tuning with the region frozen. Every state
that is measured is kept when it is done; an interrupted run goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from mechsafety.core.progress import Progress, progress_line, with_progress
from mechsafety.experiments.base import Experiment, Read
from mechsafety.experiments.records import record_shared_tokens
from mechsafety.experiments.regions.config import RegionsConfig
from mechsafety.experiments.regions.figures import region_figures
from mechsafety.experiments.regions.findings import region_findings
from mechsafety.experiments.regions.followups import follow_up
from mechsafety.experiments.regions.tasks import RegionTasks
from mechsafety.experiments.regions.work import ANSWER_KEYS, VERDICTS, RegionWork, evaluated_prompts
from mechsafety.experiments.result import Result
from mechsafety.experiments.running import run_experiment
from mechsafety.experiments.session import Session
from mechsafety.plots.style import short_name
from mechsafety.prompts.columns import Purpose
from mechsafety.prompts.prompt_set import PromptSet, load_prompts
from mechsafety.prompts.splits import require_splits
from mechsafety.runs.folder import RunFolder

if TYPE_CHECKING:
    import plotly.graph_objects as go


_TABLES = ("tradeoff", "structure", "subspaces", "attacks", "links", "link_effects", "heads", "freezing")
_TEXT = (
    *("setting", "removal", "control", "system", "state", "mode"),
    *("frozen", "kind", "method", "attack", "measure"),
)

_SHOWN = [
    *("removal", "setting", "control", "draw", "share", "mean_weight", "energy"),
    *("refused", "refused_low", "refused_high", "complied"),
    *("degenerate", "harmless_refused", "accuracy", "perplexity", "kl"),
]


class Regions(RegionTasks, Experiment[RegionsConfig]):
    """Attribution draws on the fit prompts, evaluation on the report prompts, which must not overlap."""

    kind = "regions"
    tables: ClassVar[Mapping[str, str]] = MappingProxyType(
        {name: f"{name}.csv" for name in _TABLES} | {VERDICTS: f"{VERDICTS}.parquet"}
    )
    long = frozenset({VERDICTS})
    answer_keys = ANSWER_KEYS
    stay = ("scores/",)

    def __init__(self, config: RegionsConfig) -> None:
        super().__init__(config)
        self.prompts = load_prompts(config.prompts)
        require_splits(self.prompts, self._purposes, name=config.prompts)

    def prompt_sets(self) -> Sequence[PromptSet]:
        return [self.prompts]

    def bound(self) -> Mapping[str, Any]:
        return {"prompts_sha256": self.prompts.sha256()}

    def models(self) -> Sequence[str]:
        return [self.config.model]

    def reads(self) -> Sequence[Read]:
        chosen = [(self.prompts.to_choose, 0)] if "choose" in self._purposes else []
        return [
            (self.prompts.to_estimate, self.config.answer_tokens),
            *chosen,
            (evaluated_prompts(self.prompts, self.config), self.config.max_new_tokens),
        ]

    @property
    def _purposes(self) -> tuple[Purpose, ...]:
        """Weights are scored to estimate, removals judged; heads and the direction's layer are chosen."""
        chooses = {"heads", "links"} & set(self.config.parts)
        return ("estimate", *(("choose",) if chooses else ()), "judge")

    def begun(self, session: Session) -> RegionWork:
        model = session.load(self.config.model, prompts=self.prompts)
        return RegionWork(config=self.config, session=session, prompts=self.prompts, model=model)

    def work(self, session: Session) -> Mapping[str, pd.DataFrame]:
        config, work = self.config, self.kept(session)
        self._kept = None
        tables = work.tables()
        tables |= follow_up(work, tables["tradeoff"] if "sweep" in config.parts else None)
        record_shared_tokens(session.run, config.model, work.model)
        if parts := session.run.parts(VERDICTS):
            tables[VERDICTS] = pd.concat(map(pd.read_parquet, parts), ignore_index=True)
        return tables

    @classmethod
    def read_tables(cls, run: RunFolder) -> dict[str, pd.DataFrame]:
        """The tables that the run has, by name; a text that is empty stays a text."""
        return {
            name: table.assign(**{c: table[c].fillna("").astype(str) for c in _TEXT if c in table})
            for name, table in super().read_tables(run).items()
        }

    @classmethod
    def figures(cls, result: Result) -> dict[str, go.Figure]:
        return region_figures(
            result.tables, name=shown_name(result.run), sweet_spot=recorded_sweet_spot(result.run)
        )

    @classmethod
    def findings(cls, result: Result) -> list[str]:
        found = region_findings(
            result.tables, name=shown_name(result.run), sweet_spot=recorded_sweet_spot(result.run)
        )
        return [sentence for several in found.values() for sentence in several]

    @classmethod
    def facts(cls, result: Result) -> dict[str, Any]:
        return {"sweet_spot": recorded_sweet_spot(result.run)}

    @classmethod
    def text(cls, result: Result) -> str:
        if "tradeoff" not in result.tables:
            return ""
        table = result.tables["tradeoff"]
        shown = [name for name in _SHOWN if name in table]
        return table[shown].to_string(index=False, na_rep="-", float_format="%.3g")


@with_progress
def run_regions(
    config: RegionsConfig,
    out: str | Path,
    *,
    say: Progress = progress_line,
    progress: bool = True,  # noqa: ARG001 - with_progress reads it
    allow_other_versions: bool = False,
) -> Result:
    """Run ``config`` in the folder ``out``, or go on where it was interrupted.

    Raises :class:`MechsafetyError` for a prompt set without fit or report prompts, overlapping prompts, a model that
    does not refuse enough of the harmful ones, and whatever loading the model raises.

    ``progress=False`` turns off bars and lines on the work; ``say`` receives the lines instead.

    Returns:
        The finished run: its tables, figures, findings and report.

    Example:
        >>> config = ms.regions.RegionsConfig(
        ...     model="smollm2-135m", prompts="own.csv", parts=("structure",), examples=4, rank=4, limit=3,
        ...     answer_tokens=6,
        ... )
        >>> run = ms.regions.run_regions(config, "runs/structure", progress=False)
        >>> sorted(run.tables)
        ['structure', 'subspaces']
    """
    return run_experiment(Regions(config), out, say=say, allow_other_versions=allow_other_versions)


def recorded_sweet_spot(run: RunFolder) -> dict[str, Any] | None:
    """The manifest's section on the sweet spot, where the sweep was run."""
    return run.manifest.get("sweet_spot") or None


def model_of(run: RunFolder) -> str:
    return str(run.manifest["config"].get("model", "model"))


def shown_name(run: RunFolder) -> str:
    return short_name(model_of(run))
