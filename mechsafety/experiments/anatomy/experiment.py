"""The anatomy of a fine-tuning as an experiment: what ``mechsafety anatomy`` runs.

Own answers of base, tuned and control -> clusters of MLP activations and the side on which attacks fall -> dW of the
weights, its directions and its action -> sensitivity of the first token -> models on the line from base to tuned ->
models with parts of dW -> links with the refusal direction and the safety-critical weights. Tables, answers and
measured states are kept when they are done; an interrupted run goes on.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mechsafety.anatomy.readings import prompt_groups
from mechsafety.anatomy.weight_changes import require_pair, weight_changes
from mechsafety.core.arguments import as_path
from mechsafety.core.errors import MechsafetyError, way
from mechsafety.core.progress import Progress, progress_line, with_progress
from mechsafety.experiments.anatomy.answers import OwnAnswers
from mechsafety.experiments.anatomy.config import PARTS, TABLES, AnatomyConfig, Part, Role
from mechsafety.experiments.anatomy.figures import anatomy_figures
from mechsafety.experiments.anatomy.findings import anatomy_findings
from mechsafety.experiments.anatomy.work import AnatomyWork
from mechsafety.experiments.base import Experiment, Read
from mechsafety.experiments.records import record_shared_tokens
from mechsafety.experiments.registry import load_run
from mechsafety.experiments.result import Result
from mechsafety.experiments.running import run_experiment
from mechsafety.experiments.session import Session
from mechsafety.judges.registry import judge_sources, load_judge
from mechsafety.models.loading import load_model
from mechsafety.prompts.columns import PURPOSES, SPLITS, Purpose
from mechsafety.prompts.prompt_set import Prompt, PromptSet, load_prompts
from mechsafety.prompts.splits import require_splits
from mechsafety.runs.folder import Provenance, RunFolder, read_run

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from transformer_lens.model_bridge import TransformerBridge


_PURPOSES: Mapping[Purpose, tuple[Part, ...]] = {
    "estimate": ("clusters", "links"),
    "choose": ("links",),
    "judge": PARTS,
}
"""Which parts need prompts for what."""


class Anatomy(Experiment[AnatomyConfig]):
    """Centroids, safety sets and the direction come from fit prompts, the direction's layer from validation prompts;
    everything is measured on report prompts and attacks."""

    kind = "anatomy"
    loads_early = True
    tables: ClassVar[Mapping[str, str]] = TABLES
    long = frozenset(name for name, file in TABLES.items() if file.endswith(".parquet"))
    answer_keys = ("part", "model", "state")
    stay = ("parts/refusal-scores.",)

    def __init__(self, config: AnatomyConfig) -> None:
        super().__init__(config)
        self.every = load_prompts(config.prompts)
        self.hostile = None if config.attacks is None else load_prompts(config.attacks)
        self.prompts, self.attacks = _limited(self.every, config), _families(self.hostile, config)
        require_splits(self.prompts, _purposes(config), name=config.prompts)
        _require_held_out(self.prompts, self.attacks)

    def prepare(self, day: str, say: Progress) -> None:
        """Load the judge and the models, each of which differs from the base in weights alone."""
        config = self.config

        @functools.cache  # copies of its own: the base's weights change in place while a state is measured
        def asked(spec: str, /) -> object:
            return load_model(spec, **self._judge_loading(spec), date=day)

        self.judge = load_judge(config.judge, models=asked)
        self.pair: dict[Role, TransformerBridge] = {}
        for role, spec in config.models.items():
            say(f"loading {spec}")
            self.pair[role] = load_model(spec, **self.loading, date=day)
            if role != "base":
                require_pair(self.pair["base"], self.pair[role])
                weight_changes(self.pair["base"], self.pair[role])  # raises where no matrix differs

    def reads(self) -> Sequence[Read]:
        more = self.config.max_new_tokens
        return [(self.prompts, more), (PromptSet(tuple(self.attacks)), more)]

    def prompt_sets(self) -> Sequence[PromptSet]:
        return [self.every, *([] if self.hostile is None else [self.hostile])]

    def bound(self) -> Mapping[str, Any]:
        hostile = None if self.hostile is None else self.hostile.sha256()
        return {"prompts_sha256": self.every.sha256(), "attacks_sha256": hostile}

    def models(self) -> Sequence[str]:
        return list(self.config.models.values())

    def sources(self) -> Mapping[str, Provenance]:
        loading = self._judge_loading(self.config.judge.partition(":")[2])
        return {**super().sources(), **judge_sources(self.config.judge, loading=loading)}

    def _judge_loading(self, spec: str) -> dict[str, Any]:
        """A judge's model is given the template of the pair only where it is one of them."""
        return self.loading | {"chat": None} | ({} if spec in self.models() else {"template": None})

    def work(self, session: Session) -> Mapping[str, pd.DataFrame]:
        config = self.config
        for role, model in self.pair.items():
            session.record_model(config.models[role], model, prompts=self.prompts)
        answers = OwnAnswers(
            session=session,
            models=self.pair,
            prompts=self.prompts,
            attacks=self.attacks,
            asking={"judge": self.judge, "max_new_tokens": config.max_new_tokens, "seed": config.seed},
        )
        tables = AnatomyWork(config=config, session=session, answers=answers).tables()
        for role, model in self.pair.items():
            record_shared_tokens(session.run, config.models[role], model)
        return tables

    @classmethod
    def read_tables(cls, run: RunFolder) -> dict[str, pd.DataFrame]:
        """The tables, from the parts, which keep every digit, where they are there."""
        return {
            name: run.read_part("tables", name) if run.has_part("tables", name) else table
            for name, table in super().read_tables(run).items()
        }

    @classmethod
    def figures(cls, result: Result) -> dict[str, go.Figure]:
        return anatomy_figures(result.tables, names=model_names(result))

    @classmethod
    def findings(cls, result: Result) -> list[str]:
        return [sentence for several in _by_section(result).values() for sentence in several]

    @classmethod
    def facts(cls, result: Result) -> dict[str, Any]:
        return {"findings": _by_section(result)}


@with_progress
def run_anatomy(
    config: AnatomyConfig,
    out: str | Path,
    *,
    say: Progress = progress_line,
    progress: bool = True,  # noqa: ARG001 - with_progress reads it
    allow_other_versions: bool = False,
) -> Result:
    """Run ``config`` in the folder ``out``, or go on where it was interrupted.

    Raises :class:`MechsafetyError` for a prompt set without what the parts need, attacks that are no attacks or are fit
    prompts, models that are no pair, and what loading raises.

    ``progress=False`` turns off bars and lines on the work; ``say`` receives the lines instead.

    Returns:
        The finished run: its tables, figures, findings and report.

    Example:
        >>> config = ms.anatomy.AnatomyConfig(
        ...     base="smollm2-135m", tuned="my-model", prompts="own.csv", parts=("clusters", "weights"), limit=4,
        ...     max_new_tokens=3,
        ... )
        >>> run = ms.anatomy.run_anatomy(config, "runs/anatomy", progress=False)
        >>> sorted(run.tables["separation"]["positions"].unique())
        ['last_prompt', 'output']
    """
    return run_experiment(Anatomy(config), out, say=say, allow_other_versions=allow_other_versions)


def read_anatomy(path: str | Path) -> Result:
    """A finished run. Raises :class:`MechsafetyError` for another kind of run and for one that is not finished.

    Returns:
        The finished run: its tables, figures, findings and report.

    Example:
        >>> run = ms.anatomy.read_anatomy("runs/anatomy")
        >>> run.config["tuned"]
        'my-model'
    """
    if read_run(as_path(path)).manifest["config"].get("kind") != Anatomy.kind:
        maker = way("mechsafety anatomy BASE TUNED", "ms.anatomy.run_anatomy")
        raise MechsafetyError(f"run {str(path)!r} is no anatomy: {maker} makes one")
    found = load_run(path)
    _ = found.tables  # which only a finished one has
    return found


def model_names(result: Result) -> dict[str, str]:
    """The models of the run by their part; no control where there was none."""
    config = result.config
    return {role: str(config[role]) for role in ("base", "tuned", "control") if config.get(role)}


def _by_section(result: Result) -> dict[str, list[str]]:
    return anatomy_findings(result.tables, names=model_names(result))


def _limited(prompts: PromptSet, config: AnatomyConfig) -> PromptSet:
    if config.limit is None:
        return prompts
    kept = [p for s in SPLITS for p in prompts.where(split=s).sample(config.limit, seed=config.seed)]
    return PromptSet(tuple(kept), prompts.name)


def _families(attacks: PromptSet | None, config: AnatomyConfig) -> list[Prompt]:
    """The attacks, family by family, as many of each as ``limit`` allows."""
    if attacks is None:
        return []
    families = prompt_groups([], attacks)  # which reports what is wrong with one
    if config.limit is None:
        return [p for family in families.values() for p in family]
    return [
        p
        for family in families.values()
        for p in PromptSet(tuple(family), attacks.name).sample(config.limit, seed=config.seed)
    ]


def _purposes(config: AnatomyConfig) -> list[Purpose]:
    return [purpose for purpose, parts in _PURPOSES.items() if set(parts) & set(config.parts)]


def _require_held_out(prompts: PromptSet, attacks: Sequence[Prompt]) -> None:
    """Attacks may be harmful report prompts too, but none that something is found or chosen on."""
    others = {p.folded: p for p in prompts}
    for attack in attacks:
        twin = others.get(attack.folded)
        if twin is None:
            continue
        if twin.split != PURPOSES["judge"]:
            raise MechsafetyError(
                f"attack {attack.id!r} has the text of the prompt {twin.id!r}, which centroids and directions are "
                "found on: attacks must be others"
            )
        if twin.label != attack.label:
            raise MechsafetyError(
                f"attack {attack.id!r} has the text of the {twin.label} prompt {twin.id!r}: a text has one label"
            )
