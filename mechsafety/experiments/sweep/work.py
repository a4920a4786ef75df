"""The work of a sweep: scores of every candidate, and analyses of the one that is selected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import THOUGHT_END, Method
from mechsafety.core.verdict import Label
from mechsafety.directions.activations import ResidualCache, residual_stream
from mechsafety.directions.direction import Directions, find_directions
from mechsafety.directions.estimators import refusal_subspace
from mechsafety.directions.files import load_directions, save_directions
from mechsafety.edits.files import save_edit
from mechsafety.edits.interventions import Ablate, digest
from mechsafety.experiments.base import Read
from mechsafety.experiments.session import Session
from mechsafety.experiments.sweep.config import SweepConfig
from mechsafety.experiments.thoughts import kept_thoughts
from mechsafety.generation.answered import Completion, answer_frame
from mechsafety.generation.completions import overridden_defaults
from mechsafety.generation.thought_ends import offsets_of
from mechsafety.models.chat import after_thoughts
from mechsafety.models.loading import load_record
from mechsafety.models.prefixes import prefix_note
from mechsafety.prompts.fed import fed, fed_record
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.runs.journal import Journal
from mechsafety.sweeps.behaviour import treated_as_labelled
from mechsafety.sweeps.confirmation import confirm
from mechsafety.sweeps.doses import REFUSAL, Dose, control_name, dose_curves, plan_doses
from mechsafety.sweeps.layer_profile import logit_lens, profile_layers
from mechsafety.sweeps.measures import MeasureChoice, refusal_measure
from mechsafety.sweeps.openings import kept_own_refusals
from mechsafety.sweeps.refusal_scores import LEAST_REFUSALS
from mechsafety.sweeps.selection import Selection, nearest, no_gap, select
from mechsafety.sweeps.sweep import Sweep, sweep

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_DIRECTIONS_IN_CURVES = 8
VERDICTS = "verdicts"
"""The part, and the table, of the verdict on each report prompt under each dose."""
SELECTED, MEASURED = "selected", "measured"
"""Parts that mark the selection, and each dose curve, as done."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Chosen:
    """What the first half of a sweep makes: by method the scores and the selection, and the fit prompts' streams."""

    swept: Mapping[str, Sweep]
    selections: dict[str, dict[str, Any]]
    table: pd.DataFrame
    fit: ResidualCache

    @property
    def main(self) -> str:
        """The method to go on with."""
        return _main(self.selections)

    @property
    def selection(self) -> Selection:
        return Selection.from_record(self.selections[self.main]["selection"])


def curves(config: SweepConfig) -> list[str]:
    """The names of dose curves, as they end the keys of their doses."""
    return [REFUSAL, *(control_name(draw) for draw in range(1, config.controls + 1))]


class ByCurve(Journal):
    """The journals of several dose curves as one; the unedited model is in the first."""

    def __init__(self, journals: Mapping[str, Journal]) -> None:
        self.journals = dict(journals)

    def bind(self, **facts: object) -> None:
        for journal in self.journals.values():
            journal.bind(**facts)

    def get(self, key: str) -> Any:
        return self._of(key).get(key)

    def put(self, key: str, value: Any) -> None:
        self._of(key).put(key, value)

    def _of(self, key: str) -> Journal:
        return self.journals[key.split("|")[2] if "|" in key else next(iter(self.journals))]


@dataclass(kw_only=True)
class SweepWork:
    """One session of a sweep; ``reads`` are the fit, the validation and, for dose curves, the report prompts."""

    config: SweepConfig
    session: Session
    model: TransformerBridge
    reads: Sequence[Read]

    def __post_init__(self) -> None:
        config, self.run, self.say = self.config, self.session.run, self.session.say
        read = [fed(self.model, prompts, new_tokens=n, **config.feeding) for prompts, n in self.reads]
        self.run.record_item(
            "fed", config.model, fed_record(self.model, read, escaped=config.escape_control_tokens)
        )
        self.fit, self.validation, *self.report = (one.prompts for one in read)
        self.positions = offsets_of(self.model, config.positions)
        asked = [*self.fit, *self.validation] if config.positions == THOUGHT_END else []
        self.thoughts = kept_thoughts(self.session, self.model, asked) if asked else {}

    @cached_property
    def chosen(self) -> Chosen:
        """The scores of every candidate, and what is selected among them; what is there is not made again."""
        run, config = self.run, self.config
        with after_thoughts(self.model, self.thoughts):
            measure, refuses = self._measure()
            self.say("residual streams")
            cache = residual_stream(self.model, self._fit_prompts(measure), positions=self.positions)
            swept = {method: self._scores(method, cache, measure) for method in config.methods}
        selections = {method: self._select(one) for method, one in swept.items()}
        if config.confirm and config.rule == "auto":
            first = _main(selections)
            swept[first] = self._confirmed(first, swept[first], refuses=refuses)
            selections[first] = self._select(swept[first])
        table = pd.concat([s.to_frame().assign(method=m) for m, s in swept.items()], ignore_index=True)
        table = table[["method", *[c for c in table.columns if c != "method"]]]
        run.write_table(table, "sweep.csv")
        run.record("selections", selections)
        run.write_json_part(True, SELECTED)
        return Chosen(swept=swept, selections=selections, table=table, fit=cache)

    def _fit_prompts(self, measure: MeasureChoice) -> PromptSet:
        """The prompts that directions are found on; by behaviour they are chosen once a run."""
        if self.config.fit_on != "behaviour":
            return self.fit

        def behaving() -> list[str]:
            return [p.id for p in treated_as_labelled(self.model, self.fit, measure=measure.taken)]

        kept = set(self.session.json_part("fit", make=behaving))
        return replace(self.fit, prompts=tuple(p for p in self.fit if p.id in kept))

    def tables(self) -> dict[str, pd.DataFrame]:
        """Make what is missing, and join it."""
        run, config, chosen = self.run, self.config, self.chosen
        main, swept = chosen.main, chosen.swept[chosen.main]
        self.say("stability of the selection")
        stability = swept.stability(seed=config.seed, rule=config.rule, resamples=config.resamples)
        analyses = self._analyses(swept.directions, chosen.selection)
        if config.doses:
            doses = self._planned(chosen)
            analyses["doses"] = self._measured(
                doses, ByCurve({c: self._journal("doses", c) for c in curves(config)})
            )
            for curve in curves(config):
                run.write_json_part(True, MEASURED, curve)
            parts = map(pd.read_parquet, run.parts(VERDICTS))
            analyses[VERDICTS] = pd.concat(parts, ignore_index=True)
        record = load_record(self.model)
        facts = {
            **chosen.selections[main],
            "method": main,
            "model": record.as_dict() if record else {},
            "overridden_generation_defaults": overridden_defaults(self.model),
            "shared_tokens": prefix_note(self.model),
            "fit_prompts_used": {
                "harmful": swept.directions.n_harmful,
                "harmless": swept.directions.n_harmless,
            },
            **swept.facts(rule=config.rule),
        }
        run.record("selected", facts)
        return {"sweep": chosen.table, "stability": stability, **analyses}

    def measure_doses(self, curve: str) -> None:
        """The doses of one curve: of the refusal direction, with the unedited model, or of one random draw."""
        doses = [dose for dose in self._planned(self.chosen) if dose.curve == curve]
        self._measured(doses, self._journal("doses", curve))
        self.run.write_json_part(True, MEASURED, curve)

    def _scores(self, method: Method, cache: ResidualCache, measure: MeasureChoice) -> Sweep:
        config = self.config
        self.say(f"{method}: directions at {len(self.positions)} positions and {cache.n_layers} layers")
        found = self._directions(method, cache)
        self.run.save(f"directions-{method}.safetensors", lambda path: save_directions([found], path))
        self.say(f"{method}: scores on {config.validation} + {config.validation} validation prompts")
        return sweep(
            self.model,
            found,
            self.validation,
            measure=measure,
            layers=config.layers,
            journal=self._journal("scores", method),
            racing=config.search == "race" and config.rule == "auto",
            seed=config.seed,
        )

    def _confirmed(self, method: str, swept: Sweep, *, refuses: bool) -> Sweep:
        """With what the model writes under the first candidates of the method that the run goes on with."""
        config = self.config
        if (why := no_gap(swept.to_frame())) is not None and not refuses:
            self.say(f"{method}: no candidate is confirmed, {why}")
            return swept
        self.say(
            f"{method}: answers to {config.validation} validation prompts under {config.confirm} candidates"
        )
        table = confirm(
            self.model,
            swept.to_frame(),
            swept.directions,
            self.validation,
            candidates=config.confirm,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
            journal=self._journal("confirmation", method),
        )
        return replace(swept, frame=table)

    def _directions(self, method: Method, cache: ResidualCache) -> Directions:
        """Those that the run's first session found: its scores are of these vectors, to the last digit."""
        target = self.run.part_path("directions", method, suffix="safetensors")
        if not self.run.has_part("directions", method, suffix="safetensors"):
            made = find_directions(cache, method=method, centring=self.config.centring, seed=self.config.seed)
            self.run.save(str(target.relative_to(self.run.path)), made.save)
        return load_directions(target)

    def _measure(self) -> tuple[MeasureChoice, bool]:
        """What scores are about, and whether the model refuses at all as far as that is known."""
        named, model, validation = self.config.refusal_tokens, self.model, self.validation
        if named is not None:
            return refusal_measure(model, validation, refusal_tokens=named), True
        self.say("the model's own refusals, and how they begin")
        own = kept_own_refusals(self.run, model=model, prompts=validation, seed=self.config.seed)
        # The published thresholds are of first tokens.
        answers = self.config.rule == "auto"
        measure = refusal_measure(model, validation, refusals=own, written_answers=answers)
        return measure, len(own.refused) >= LEAST_REFUSALS

    def _select(self, swept: Sweep) -> dict[str, Any]:
        try:
            chosen = select(swept.to_frame(), n_layers=swept.n_layers, rule=self.config.rule)
            note = chosen.explain()
        except MechsafetyError as error:
            chosen = nearest(swept.to_frame(), n_layers=swept.n_layers)
            note = f"No candidate passed: {error}. What follows is about the nearest one"
        return {"selection": asdict(chosen), "explanation": note}

    # -- the selected direction -----------------------------------------------------------------

    def _analyses(self, found: Directions, selection: Selection) -> dict[str, pd.DataFrame]:
        self.say("layer profile and logit lens")
        with after_thoughts(self.model, self.thoughts):
            held_out = residual_stream(self.model, self.validation, positions=(selection.position,))
        profile = profile_layers(
            found, held_out, position=selection.position, selected=selection.layer, seed=self.config.seed
        )
        direction = found.at(layer=selection.layer, position=selection.position)
        lens, edit = logit_lens(self.model, direction), Ablate(direction)
        self.run.write_table(lens, "lens.csv")
        self.run.save("edit.safetensors", lambda path: save_edit(edit, path, model=self.model))
        self.run.record("edit", {"description": edit.describe(), "sha256": digest(edit)})
        return {"profile": profile.to_frame(), "lens": lens}

    def _planned(self, chosen: Chosen) -> list[Dose]:
        config, selection = self.config, chosen.selection
        at = chosen.fit.positions.index(selection.position)
        harmful, harmless = (
            chosen.fit.select(label)[:, at, selection.layer] for label in ("harmful", "harmless")
        )
        directions = chosen.swept[chosen.main].directions
        return plan_doses(
            directions.at(layer=selection.layer, position=selection.position),
            refusal_subspace(harmful, harmless, k=_DIRECTIONS_IN_CURVES).float(),
            self.model.cfg.n_layers,
            activations=(harmful, harmless),
            system=config.model,
            controls=config.controls,
            families=config.families,
            seed=config.seed,
        )

    def _measured(self, doses: Sequence[Dose], journal: Journal) -> pd.DataFrame:
        config = self.config
        self.say(f"dose curves: {', '.join(config.doses)}")
        return dose_curves(
            self.model,
            doses,
            self.report[0],
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
            journal=journal,
            keep_state=self._keep,
            keep_verdicts=self._keep_verdicts,
        )

    def _keep(self, state: str, answers: Sequence[Completion]) -> None:
        """Keep the answers under one dose (``unedited``, or ``family|dose|direction``)."""
        self.session.keep_answers(answer_frame(answers, **_dose_keys(state)), state)

    def _keep_verdicts(self, state: str, verdicts: Mapping[str, Label]) -> None:
        """Keep the verdict on each report prompt under one dose."""
        labels = {p.id: p.label for p in self.report[0]}
        rows = [
            {**_dose_keys(state), "id": i, "label": labels[i], "verdict": verdict}
            for i, verdict in verdicts.items()
        ]
        self.run.write_part(pd.DataFrame(rows), VERDICTS, state)

    def _journal(self, *key: str) -> Journal:
        return Journal(self.run.part_path(*key, suffix="jsonl"))


def _dose_keys(state: str) -> dict[str, str]:
    names = state.split("|") if "|" in state else ("none", state, "none")
    return dict(zip(("family", "dose", "direction"), names, strict=True))


def _main(selections: dict[str, dict[str, Any]]) -> str:
    """The method to go on with: the first in which a candidate passed, else the first."""
    passed = [m for m, facts in selections.items() if facts["selection"]["rule"] != "nearest"]
    return (passed or list(selections))[0]
