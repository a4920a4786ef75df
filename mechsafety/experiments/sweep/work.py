"""A whole layer-by-layer analysis of one model, in a run folder: what ``mechsafety sweep`` does.

The way of the data: fit prompts -> residual streams at the named positions -> directions of every method ->
validation prompts -> scores of every (method, position, layer) -> selection and its stability -> profile, lens
and, where asked, dose curves of the selected direction on report prompts -> tables. Every candidate and every
dose is kept when it is done; an interrupted run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import Method
from mechsafety.directions.activations import ResidualCache, residual_stream
from mechsafety.directions.direction import Directions, find_directions, save_directions
from mechsafety.directions.estimators import refusal_subspace
from mechsafety.edits.files import save_edit
from mechsafety.edits.interventions import Ablate, digest
from mechsafety.experiments.sweep.config import SweepConfig
from mechsafety.generation.completions import overridden_defaults
from mechsafety.models.chat import post_instruction_positions
from mechsafety.models.loading import load_model, load_record
from mechsafety.models.prefixes import prefix_note
from mechsafety.models.provenance import of_models
from mechsafety.prompts.fed import fed, fed_record, require_all_fit
from mechsafety.prompts.prompt_set import PromptSet, load_prompts
from mechsafety.prompts.splits import record_repeated, require_splits
from mechsafety.runs.folder import Journal, Provenance, RunFolder, open_run, pinned_date, record_date
from mechsafety.sweeps.doses import dose_curves, plan_doses
from mechsafety.sweeps.layer_profile import logit_lens, profile_layers
from mechsafety.sweeps.openings import ANSWER_TOKENS, own_refusal_tokens
from mechsafety.sweeps.refusal_scores import RefusalTokens, named_refusal_tokens
from mechsafety.sweeps.selection import RULES, Selection, nearest, select
from mechsafety.sweeps.sweep import Sweep, sweep

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Say = Callable[[str], None]
_DIRECTIONS_IN_CURVES = 8


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """A finished sweep: where it lies, the table of scores, what was selected and how steadily."""

    path: Path
    table: pd.DataFrame
    selection: dict[str, Any]
    stability: pd.DataFrame

    def _repr_html_(self) -> str:
        return (
            f"<b>Sweep</b> in {escape(str(self.path))}: {escape(self.selection['explanation'])}"
            f"{self.table.round(3).to_html(index=False, border=0)}"
        )


def run_sweep(
    config: SweepConfig, out: Path, *, say: Say = lambda _: None, allow_other_versions: bool = False
) -> SweepRun:
    """Run ``config`` in the folder ``out``, or go on where it was interrupted (:func:`open_run`).

    Raises :class:`MechsafetyError` for an unknown rule, a prompt set without fit or validation prompts of both
    labels, positions or layers that do not exist, and whatever loading the model raises.
    """
    if config.rule not in RULES:
        raise MechsafetyError(f"rule {config.rule!r} is not one of {', '.join(RULES)}")
    prompts = load_prompts(config.prompts)
    require_splits(
        prompts, ("estimate", "choose", *(("judge",) if config.doses else ())), name=config.prompts
    )
    asked = config.model_dump(mode="json") | {"kind": "sweep", "prompts_sha256": prompts.sha256()}
    started = time.perf_counter()
    loading = config.loading

    def sources() -> dict[str, Provenance]:
        return of_models(config.model, **loading)

    day = pinned_date(out, config.date)
    with open_run(out, config=asked, sources=sources, allow_other_versions=allow_other_versions) as run:
        record_date(run, day)
        record_repeated(run, say, prompts)
        require_all_fit(
            [config.model],
            _read(config, prompts).values(),
            template=config.template,
            date=day,
            **_feeding(config),
        )
        say(f"loading {config.model}")
        model = load_model(config.model, **loading, date=day)
        work = _Sweep(config=config, run=run, prompts=prompts, model=model, say=say)
        record = fed_record(model, work.parts.values(), escaped=config.escape_control_tokens)
        run.record_item("fed", config.model, record)
        result = work.tables()
        run.record_item("timings", "last_session_s", round(time.perf_counter() - started, 1))
    return result


def _read(config: SweepConfig, prompts: PromptSet) -> dict[str, tuple[PromptSet, int]]:
    """The prompts that the model reads, by their part, with the tokens that it may add."""
    parts = {
        "fit": (prompts.to_estimate.sample(config.fit, seed=config.seed), 0),
        "validation": (prompts.to_choose.sample(config.validation, seed=config.seed), ANSWER_TOKENS),
    }
    if config.doses:
        report = prompts.to_judge.sample(config.dose_prompts, seed=config.seed)
        parts["report"] = (report, config.max_new_tokens)
    return parts


def _feeding(config: SweepConfig) -> dict[str, bool]:
    return {"truncate": config.truncate_prompts, "escape": config.escape_control_tokens}


@dataclass(kw_only=True)
class _Sweep:
    config: SweepConfig
    run: RunFolder
    prompts: PromptSet
    model: TransformerBridge
    say: Say

    def __post_init__(self) -> None:
        config = self.config
        self.parts = {
            name: fed(self.model, prompts, new_tokens=new_tokens, **_feeding(config))
            for name, (prompts, new_tokens) in _read(config, self.prompts).items()
        }
        self.fit, self.validation = self.parts["fit"].prompts, self.parts["validation"].prompts
        if config.positions == "post":
            self.positions = post_instruction_positions(self.model)
        else:
            self.positions = (-1,) if config.positions == "last" else tuple(config.positions)

    def tables(self) -> SweepRun:
        """Make what is missing, join it, and write the run's tables."""
        self.say("residual streams")
        cache = residual_stream(self.model, self.fit, positions=self.positions)
        tokens = self._tokens()
        found: dict[str, Directions] = {}
        swept: dict[str, Sweep] = {}
        for method in self.config.methods:
            self.say(f"{method}: directions at {len(self.positions)} positions and {cache.n_layers} layers")
            found[method] = self._directions(method, cache)
            self.say(
                f"{method}: scores on {self.config.validation} + {self.config.validation} validation prompts"
            )
            swept[method] = sweep(
                self.model,
                found[method],
                self.validation,
                refusal_tokens=tokens,
                layers=self.config.layers,
                journal=self._journal("scores", method),
            )
        run = self.run
        table = pd.concat([s.table.assign(method=m) for m, s in swept.items()], ignore_index=True)
        table = table[["method", *[c for c in table.columns if c != "method"]]]
        run.write_table(table, "sweep.parquet")
        run.write_table(table, "sweep.csv")
        for method, directions in found.items():
            run.save(
                f"directions-{method}.safetensors", lambda path, one=directions: save_directions([one], path)
            )
        selections = {method: self._select(one) for method, one in swept.items()}
        run.record("selections", selections)
        main = self._main(selections)
        self.say("stability of the selection")
        stability = swept[main].stability(
            seed=self.config.seed, rule=self.config.rule, resamples=self.config.resamples
        )
        run.write_table(stability, "stability.csv")
        self._analyses(found[main], selections[main]["selection"], cache)
        facts = selections[main] | {"method": main}
        run.record("selected", facts | self._facts(swept[main]))
        return SweepRun(path=run.path, table=table, selection=facts, stability=stability)

    def _directions(self, method: Method, cache: ResidualCache) -> Directions:
        """Those that the run's first session found: its scores are of these vectors, to the last digit."""
        target = self.run.part_path("directions", method, suffix="safetensors")
        if not self.run.has_part("directions", method, suffix="safetensors"):
            made = find_directions(cache, method=method, centring=self.config.centring, seed=self.config.seed)
            self.run.save(str(target.relative_to(self.run.path)), made.save)
        return Directions.load(target)

    def _main(self, selections: dict[str, dict[str, Any]]) -> str:
        """The method to go on with: the first in which a candidate passed, else the first."""
        passed = [m for m, facts in selections.items() if facts["selection"]["rule"] != "nearest"]
        return (passed or list(selections))[0]

    def _tokens(self) -> RefusalTokens | None:
        if self.config.refusal_tokens is not None:
            return named_refusal_tokens(self.model, self.config.refusal_tokens)
        if not self.run.has_part("tokens", suffix="json"):
            self.say("refusal tokens, from the model's own refusals")
            tokens = own_refusal_tokens(self.model, self.validation, seed=self.config.seed)
            self.run.write_json_part(asdict(tokens) if tokens is not None else None, "tokens")
        stored = self.run.read_json_part("tokens")
        if stored is None:
            return None
        lists = {key: tuple(stored[key]) for key in ("ids", "texts", "weight")}
        return RefusalTokens(**lists, source=stored["source"])

    def _select(self, swept: Sweep) -> dict[str, Any]:
        try:
            chosen = select(swept.table, n_layers=swept.n_layers, rule=self.config.rule)
            note = chosen.explain()
        except MechsafetyError as error:
            chosen = nearest(swept.table, n_layers=swept.n_layers)
            note = f"No candidate passed: {error}. What follows is about the nearest one"
        return {"selection": asdict(chosen), "explanation": note}

    def _facts(self, swept: Sweep) -> dict[str, Any]:
        record = load_record(self.model)
        return {
            "model": record.as_dict() if record else {},
            "overridden_generation_defaults": overridden_defaults(self.model),
            "shared_tokens": prefix_note(self.model),
            "refusal_tokens": asdict(swept.refusal_tokens),
            "base_refusal_score": {
                "harmful": round(swept.base_harmful, 4),
                "harmless": round(swept.base_harmless, 4),
            },
            "validation_prompts_used": {"harmful": swept.n_harmful, "harmless": swept.n_harmless},
        }

    # -- the selected direction -----------------------------------------------------------------

    def _analyses(self, found: Directions, chosen: dict[str, Any], fit: ResidualCache) -> None:
        selection = Selection(**chosen)
        self.say("layer profile and logit lens")
        held_out = residual_stream(self.model, self.validation, positions=(selection.position,))
        profile = profile_layers(
            found,
            held_out,
            position=selection.position,
            selected=selection.layer,
            seed=self.config.seed,
        )
        self.run.write_table(profile, "profile.csv")
        direction = found.at(layer=selection.layer, position=selection.position)
        lens = logit_lens(self.model, direction)
        self.run.write_table(lens, "lens.parquet")  # tokens as they are; a CSV cell may not begin with "="
        self.run.write_table(lens, "lens.csv")
        edit = Ablate(direction)
        self.run.save("edit.safetensors", lambda path: save_edit(edit, path, model=self.model))
        self.run.record("edit", {"description": edit.describe(), "sha256": digest(edit)})
        if self.config.doses:
            self._doses(found, selection, fit)

    def _doses(self, found: Directions, selection: Selection, fit: ResidualCache) -> None:
        self.say(f"dose curves: {', '.join(self.config.doses)}")
        at = fit.positions.index(selection.position)
        basis = refusal_subspace(
            fit.select("harmful")[:, at, selection.layer],
            fit.select("harmless")[:, at, selection.layer],
            k=_DIRECTIONS_IN_CURVES,
        )
        doses = plan_doses(
            found.at(layer=selection.layer, position=selection.position),
            basis.float(),
            self.model.cfg.n_layers,
            families=self.config.doses,
            seed=self.config.seed,
        )
        curves = dose_curves(
            self.model,
            doses,
            self.parts["report"].prompts,
            max_new_tokens=self.config.max_new_tokens,
            seed=self.config.seed,
            journal=self._journal("doses"),
        )
        self.run.write_table(curves, "doses.csv")

    def _journal(self, *key: str) -> Journal:
        return Journal(self.run.part_path(*key, suffix="jsonl"))
