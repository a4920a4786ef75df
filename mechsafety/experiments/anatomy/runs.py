"""The anatomy of a fine-tuning, in a run folder: what ``mechsafety anatomy`` does.

The way of the data: own answers of base, tuned and control -> clusters of MLP activations and the side on which attacks
fall -> dW of the weights, its directions and its action -> sensitivity of the first token -> models on the line from
base to tuned -> models with parts of dW -> links with the refusal direction and the safety-critical weights. Tables,
answers and measured states are kept when they are done; an interrupted run goes on.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechsafety.anatomy.readings import prompt_groups
from mechsafety.anatomy.weight_changes import require_pair, weight_changes
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Judge
from mechsafety.experiments.anatomy.answers import OwnAnswers
from mechsafety.experiments.anatomy.config import PART_TABLES, PARTS, TABLES, AnatomyConfig, Part, Role
from mechsafety.experiments.anatomy.work import AnatomyWork
from mechsafety.experiments.records import record_fed, record_shared_tokens
from mechsafety.judges.registry import judge_sources, load_judge
from mechsafety.models.loading import load_model, load_record
from mechsafety.models.provenance import of_models
from mechsafety.prompts.fed import require_all_fit
from mechsafety.prompts.prompt_set import (
    PURPOSES,
    SPLITS,
    Prompt,
    PromptSet,
    Purpose,
    folded,
    load_prompts,
)
from mechsafety.prompts.splits import record_repeated, require_splits
from mechsafety.runs.folder import Provenance, RunFolder, open_run, pinned_date, read_run, record_date

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from transformer_lens.model_bridge import TransformerBridge

Say = Callable[[str], None]

_PURPOSES: Mapping[Purpose, tuple[Part, ...]] = {
    "estimate": ("clusters", "links"),
    "choose": ("links",),
    "judge": PARTS,
}
"""Which parts need prompts for what."""


@dataclass(frozen=True, kw_only=True)
class AnatomyRun:
    """A finished run: where it lies, and its tables by name."""

    path: Path
    tables: dict[str, pd.DataFrame]

    def figures(self) -> dict[str, go.Figure]:
        """Every figure, by file name."""
        from mechsafety.experiments.anatomy.figures import anatomy_figures

        return anatomy_figures(self.tables, names=model_names(read_run(self.path)))

    def _repr_html_(self) -> str:
        shown = "".join(
            f"<h4>{escape(name)}</h4>{table.head(12).round(3).to_html(index=False, border=0)}"
            for name, table in self.tables.items()
        )
        return f"<b>Anatomy</b> in {escape(str(self.path))}{shown}"


def run_anatomy(
    config: AnatomyConfig,
    out: Path | str,
    *,
    say: Say = lambda _: None,
    allow_other_versions: bool = False,
) -> AnatomyRun:
    """Run ``config`` in the folder ``out``, or go on where it was interrupted.

    Centroids, safety sets and the direction come from fit prompts, the direction's layer from validation prompts;
    everything is measured on report prompts and attacks. Raises :class:`MechsafetyError` for a prompt set without what
    the parts need, attacks that are no attacks or are fit prompts, models that are no pair, and what loading raises.
    """
    out = Path(out)
    every = load_prompts(config.prompts)
    hostile = load_prompts(config.attacks) if config.attacks is not None else None
    prompts, attacks = _limited(every, config), _families(hostile, config)
    require_splits(prompts, _purposes(config), name=config.prompts)
    _require_held_out(prompts, attacks)
    asked = config.model_dump(mode="json") | {
        "kind": "anatomy",
        "prompts_sha256": every.sha256(),
        "attacks_sha256": None if hostile is None else hostile.sha256(),
    }
    started = time.perf_counter()
    sources = of_models(*config.models.values(), **config.loading) | _judge_sources(config)
    day = pinned_date(out, config.date)
    read = [(prompts, config.max_new_tokens), (PromptSet(tuple(attacks)), config.max_new_tokens)]
    require_all_fit(config.models.values(), read, template=config.template, date=day)
    judge = _judge(config, day)
    models = _pair(config, day, say)
    with open_run(out, config=asked, sources=sources, allow_other_versions=allow_other_versions) as run:
        record_date(run, day)
        record_repeated(run, say, every, *([] if hostile is None else [hostile]))
        records = {role: load_record(model) for role, model in models.items()}
        run.record("models", {role: record.as_dict() if record else {} for role, record in records.items()})
        for role, model in models.items():
            record_fed(run, config.models[role], model, prompts)
        answers = OwnAnswers(
            run=run,
            models=models,
            prompts=prompts,
            attacks=attacks,
            judge=judge,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
            say=say,
        )
        tables = AnatomyWork(config=config, run=run, answers=answers).tables()
        for name, table in tables.items():
            run.write_table(table, TABLES[name])
        for role, model in models.items():
            record_shared_tokens(run, config.models[role], model)
        run.record_item("timings", "last_session_s", round(time.perf_counter() - started, 1))
    return AnatomyRun(path=run.path, tables=tables)


def read_anatomy(path: Path | str) -> AnatomyRun:
    """A finished run. Raises :class:`MechsafetyError` for another kind of run and for one that is not finished."""
    path = Path(path)
    run = read_run(path)
    config = run.manifest["config"]
    if config.get("kind") != "anatomy":
        raise MechsafetyError(f"run {str(path)!r} is no anatomy: mechsafety anatomy BASE TUNED makes one")
    names = [name for part in config["parts"] for name in PART_TABLES[part]]
    if missing := [name for name in names if not run.has_part("tables", name)]:
        raise MechsafetyError(
            f"anatomy {str(path)!r} has no {TABLES[missing[0]]} yet: give the command that began it again to finish it"
        )
    return AnatomyRun(path=run.path, tables={name: run.read_part("tables", name) for name in names})


def model_names(run: RunFolder) -> dict[str, str]:
    """The models of the run by their part; no control where there was none."""
    config = run.manifest["config"]
    return {role: str(config[role]) for role in ("base", "tuned", "control") if config.get(role)}


def _limited(prompts: PromptSet, config: AnatomyConfig) -> PromptSet:
    if config.limit is None:
        return prompts
    kept = [p for s in SPLITS for p in prompts.where(split=s).sample(config.limit, seed=config.seed)]
    return PromptSet(tuple(kept), prompts.name)


def _families(attacks: PromptSet | None, config: AnatomyConfig) -> list[Prompt]:
    """The attacks, family by family, as many of each as ``limit`` allows."""
    if attacks is None:
        return []
    families = prompt_groups([], attacks)  # which says what is wrong with one
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
    others = {folded(p.text): p for p in prompts}
    for attack in attacks:
        twin = others.get(folded(attack.text))
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


def _judge(config: AnatomyConfig, day: str) -> Judge:
    """The judge, with copies of its own of the models that it asks."""

    @functools.cache
    def model(spec: str, /) -> object:
        return load_model(spec, **_judge_loading(config, spec), date=day)

    return load_judge(config.judge, models=model)


def _judge_loading(config: AnatomyConfig, spec: str) -> dict[str, Any]:
    """A judge's model is given the template of the pair only where it is one of them."""
    return config.loading | ({} if spec in config.models.values() else {"template": None})


def _judge_sources(config: AnatomyConfig) -> dict[str, Provenance]:
    asked = config.judge.partition(":")[2]
    return judge_sources(config.judge, loading=_judge_loading(config, asked))


def _pair(config: AnatomyConfig, day: str, say: Say) -> dict[Role, TransformerBridge]:
    """The models, each of which differs from the base in weights alone."""
    found: dict[Role, TransformerBridge] = {}
    for role, spec in config.models.items():
        say(f"loading {spec}")
        found[role] = load_model(spec, **config.loading, date=day)
        if role != "base":
            require_pair(found["base"], found[role])
            weight_changes(found["base"], found[role])  # raises where no matrix differs
    return found
