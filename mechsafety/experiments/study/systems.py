"""One system of a study: residual streams, directions, the sweep, one selected direction and its edit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import THOUGHT_END
from mechsafety.core.verdict import Judge
from mechsafety.directions.activations import ResidualCache, residual_stream
from mechsafety.directions.direction import (
    Direction,
    Directions,
    find_directions,
    principal_plane,
)
from mechsafety.directions.files import load_directions
from mechsafety.edits.interventions import Edit, digest
from mechsafety.edits.recipes import Recipe, recipe
from mechsafety.experiments.session import Session
from mechsafety.experiments.study.config import StudyConfig
from mechsafety.experiments.study.controls import (
    RANDOM,
    direction_of_arm,
    draw_controls,
)
from mechsafety.experiments.thoughts import kept_thoughts
from mechsafety.generation.answered import Completion, answer_frame
from mechsafety.generation.completions import overridden_defaults
from mechsafety.models.chat import after_thoughts, post_instruction_positions
from mechsafety.models.loading import load_record
from mechsafety.models.prefixes import prefix_note
from mechsafety.prompts.fed import Fed, fed, fed_record
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.runs.folder import RunFolder
from mechsafety.runs.journal import Journal
from mechsafety.sweeps.behaviour import treated_as_labelled
from mechsafety.sweeps.confirmation import confirm
from mechsafety.sweeps.measures import MeasureChoice, refusal_measure
from mechsafety.sweeps.openings import ANSWER_TOKENS, kept_own_refusals
from mechsafety.sweeps.refusal_scores import LEAST_REFUSALS, OwnRefusals
from mechsafety.sweeps.selection import Place, Selection, candidate, nearest, no_gap, select
from mechsafety.sweeps.sweep import sweep

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_KEPT_STREAM = 2**30
"""Bytes of the fit prompts' residual stream that are kept for the random directions, which else read it anew."""


def edit_of(run: RunFolder, config: StudyConfig, spec: str) -> Edit:
    """The edit that the study of ``config`` in ``run`` puts on system ``spec``, from its directions and selection."""
    return _build(run, config, spec, direction_of(run, spec))


def direction_of(run: RunFolder, spec: str) -> Direction:
    """The direction that the study in ``run`` selected for system ``spec``."""
    directions = load_directions(run.part_path("directions", spec, suffix="safetensors"))
    selected = run.read_json_part("selection", spec)["selection"]
    return directions.at(layer=selected["layer"], position=selected["position"])


def _build(run: RunFolder, config: StudyConfig, spec: str, direction: Direction) -> Edit:
    n_layers = run.read_json_part("selection", spec)["model"]["n_layers"]
    return recipe_of(config).build(direction, alpha=config.alpha, n_layers=n_layers)


def anchor_tokens(config: StudyConfig) -> int:
    """The longest answer to an anchor: to tell refusals apart, and to confirm candidates."""
    return max(ANSWER_TOKENS, config.max_new_tokens if config.confirm else 0)


def recipe_of(config: StudyConfig) -> Recipe:
    """The recipe with what the configuration has instead of its choices."""
    return recipe(
        config.recipe,
        method=config.direction,
        centring=config.centring,
        layer=config.layer,
        positions=config.positions,
        fit_on=config.fit_on,
    )


@dataclass(kw_only=True)
class SystemWork:
    """What a study makes of one system before it answers. Models and prompts are kept between calls."""

    config: StudyConfig
    session: Session
    report: PromptSet = field(default_factory=lambda: PromptSet(()))
    anchors: PromptSet = field(default_factory=lambda: PromptSet(()))

    def __post_init__(self) -> None:
        self.run, self.say, self.recipe = self.session.run, self.session.say, recipe_of(self.config)
        self._fed: dict[str, tuple[Fed, Fed]] = {}
        self._models: dict[str, TransformerBridge] = {}
        self._judges: dict[str, Judge] = {}
        self._ended: set[str] = set()  # judges behind addresses that are not asked again in this session
        self.stopped: dict[str, MechsafetyError] = {}
        """Why verdicts of judges behind addresses are missing, by judge."""
        self._measures: dict[str, MeasureChoice] = {}
        self._streams: dict[str, ResidualCache] = {}
        self._thoughts: dict[str, dict[tuple[int, ...], Sequence[int]]] = {}

    # -- models ---------------------------------------------------------------------------------

    def model(self, spec: str) -> TransformerBridge:
        """The loaded model; the last system's is dropped unless it judges."""
        if spec not in self._models:
            judges = {j.partition(":")[2] for j in self.config.judges}
            self._models = {s: m for s, m in self._models.items() if s in judges}
            self._models[spec] = self.session.load(spec, judging=spec not in self.config.systems)
        return self._models[spec]

    def fed(self, spec: str) -> tuple[Fed, Fed]:
        """The report prompts and the anchors as they enter the work on one system."""
        if spec not in self._fed:
            model, feeding = self.model(spec), self.config.feeding
            self._fed[spec] = (
                fed(model, self.report, new_tokens=self.config.max_new_tokens, **feeding),
                fed(model, self.anchors, new_tokens=anchor_tokens(self.config), **feeding),
            )
        return self._fed[spec]

    def anchors_of(self, spec: str) -> PromptSet:
        return self.fed(spec)[1].prompts

    def held(self) -> list[str]:
        """The models that are loaded."""
        return [*self._models]

    # -- the direction ---------------------------------------------------------------------------

    def choose(self, spec: str, title: str) -> None:
        """Directions, their scores, and the selected one with its edit."""
        run, session = self.run, self.session
        with session.timed(spec, "directions"):
            if not run.has_part("directions", spec, suffix="safetensors"):
                self.say(f"{title} · residual streams and directions")
                self._directions(spec)
        with session.timed(spec, "sweep"):
            if not run.has_part("swept", spec, suffix="json"):
                self.say(
                    f"{title} · layer sweep on {self.config.validation} + {self.config.validation} prompts"
                )
                self._sweep(spec)
        with session.timed(spec, "selection"):
            if not run.has_part("selection", spec, suffix="json"):
                self._select(spec, title)

    def _directions(self, spec: str) -> None:
        model = self.model(spec)
        positions: tuple[int, ...] = (-1,)
        if self.recipe.positions == "post_instruction" and not self._last_token_alone(spec):
            positions = post_instruction_positions(model)
        cache = self._stream(spec, self.fit_prompts(spec), positions)
        if self.config.controls and cache.activations.nbytes <= _KEPT_STREAM:
            self._streams = {spec: cache}
        found = find_directions(
            cache, method=self.recipe.method, centring=self.recipe.centring, seed=self.config.seed
        )
        target = self.run.part_path("directions", spec, suffix="safetensors")
        self.run.save(str(target.relative_to(self.run.path)), found.save)

    def _stream(self, spec: str, prompts: PromptSet, positions: tuple[int, ...]) -> ResidualCache:
        with self._behind_thoughts(spec) as model:
            return residual_stream(model, prompts, positions=positions, final_norm=self.recipe.final_norm)

    @contextmanager
    def _behind_thoughts(self, spec: str) -> Iterator[TransformerBridge]:
        """The model, which reads anchors with its own thoughts behind them where directions are those of their ends."""
        model = self.model(spec)
        if self.recipe.positions != THOUGHT_END:
            yield model
            return
        if spec not in self._thoughts:
            self._thoughts = {spec: kept_thoughts(self.session, model, self.anchors_of(spec), spec)}
        with after_thoughts(model, self._thoughts[spec]):
            yield model

    def _last_token_alone(self, spec: str) -> bool:
        """Whether candidates of the last token alone compete because each takes long to score.

        Written answers take several times as long as first tokens; who names the positions has asked for all of them.
        """
        if self.config.positions is not None or self.recipe.positions != "post_instruction":
            return False
        return self.recipe.fit_on == "behaviour" and self.measure(spec).taken.kind == "answers"

    def refusals(self, spec: str) -> OwnRefusals:
        """The model's own refusals of validation prompts."""
        validation = self.anchors_of(spec).to_choose
        return kept_own_refusals(
            self.run, spec, model=self.model(spec), prompts=validation, seed=self.config.seed
        )

    def measure(self, spec: str) -> MeasureChoice:
        """What refusal scores are about, taken on validation prompts; that of the last system is kept."""
        if spec not in self._measures:
            # The published thresholds are of first tokens.
            options = {"refusals": self.refusals(spec), "written_answers": self._rule == "auto"}
            with self._behind_thoughts(spec) as model:
                chosen = refusal_measure(model, self.anchors_of(spec).to_choose, **options)
            self._measures = {spec: chosen}
        return self._measures[spec]

    def fit_prompts(self, spec: str) -> PromptSet:
        """The prompts that directions are found on."""
        if self.recipe.fit_on == "anchors":
            return self.anchors_of(spec)
        prompts = self.anchors_of(spec).to_estimate
        if self.recipe.fit_on == "labels":
            return prompts
        if not self.run.has_part("fit", spec, suffix="json"):
            measure, threshold = self.measure(spec).taken, self.recipe.threshold
            with self._behind_thoughts(spec) as model:
                used = treated_as_labelled(model, prompts, measure=measure, threshold=threshold)
            self.run.write_json_part([p.id for p in used], "fit", spec)
        kept = set(self.run.read_json_part("fit", spec))
        return replace(prompts, prompts=tuple(p for p in prompts if p.id in kept))

    def directions(self, spec: str) -> Directions:
        return load_directions(self.run.part_path("directions", spec, suffix="safetensors"))

    def _sweep(self, spec: str) -> None:
        """Scores of every candidate; of the one whose layer a recipe or the user fixes alone."""
        model, directions = self.model(spec), self.directions(spec)
        n_layers, validation, seed = model.cfg.n_layers, self.anchors_of(spec).to_choose, self.config.seed
        fixed = self.recipe.layer_of(n_layers)
        if fixed is not None and fixed > n_layers:
            raise MechsafetyError(f"layer {fixed} of a model with layers 0 to {n_layers}")
        measure = self.measure(spec)
        with self._behind_thoughts(spec):
            swept = sweep(
                model,
                directions if fixed is None else directions.only(-1),
                validation,
                measure=measure,
                layers=None if fixed is None else [fixed],
                journal=Journal(self.run.part_path("scores", spec, suffix="jsonl")),
                racing=self.config.search == "race" and fixed is None and self._rule == "auto",
                threshold=self.recipe.threshold,
                seed=seed,
            )
        self.run.write_part(swept.to_frame().assign(system=spec), "sweep", spec)
        facts = swept.facts(rule=None if fixed is not None else self._rule)
        self.run.write_json_part(facts, "swept", spec)

    @property
    def _rule(self) -> str:
        return self.config.selection or self.recipe.rule

    def _select(self, spec: str, title: str) -> None:
        """One candidate, by its scores and by what the model writes under the first ones, and its edit."""
        model, directions = self.model(spec), self.directions(spec)
        table = self.run.read_part("sweep", spec)
        nothing = no_gap(table)
        # Where the scores show no refusal, but the model writes some, what it writes decides.
        refuses = nothing is None or len(self.refusals(spec).refused) >= LEAST_REFUSALS
        if self.config.confirm and self._rule == "auto" and len(table) > 1 and refuses:
            n = len(self.anchors_of(spec).to_choose.harmful)
            self.say(f"{title} · {n} answers under each of the first {self.config.confirm} candidates")
            table = self._confirmed(spec, model, directions, table)
            self.run.write_part(table, "sweep", spec)
        selection, note = self._selected(table, model.cfg.n_layers)
        if self._last_token_alone(spec):
            note += (
                ". Scored by written answers, which takes long, directions of the last token alone compete"
            )
        direction = directions.at(layer=selection.layer, position=selection.position)
        cache = self._stream(spec, self.anchors_of(spec).to_choose, (selection.position,))
        self.run.write_part(principal_plane(cache, direction).assign(system=spec), "scatter", spec)
        edit = self.recipe.build(direction, alpha=self.config.alpha, n_layers=model.cfg.n_layers)
        record = load_record(model)
        facts = {
            "model": record.as_dict() if record else {},
            "overridden_generation_defaults": overridden_defaults(model),
            "shared_tokens": prefix_note(model),
            **fed_record(model, self.fed(spec), escaped=self.config.escape_control_tokens),
            "recipe": self.recipe.name,
            "recipe_about": self.recipe.about,
            "selection": asdict(selection),
            "explanation": note,
            "no_gap": nothing,
            "fit_on": self.recipe.fit_on,
            "fit_prompts_used": {"harmful": directions.n_harmful, "harmless": directions.n_harmless},
            **self.run.read_json_part("swept", spec),
            "edit": {"description": edit.describe(), "sha256": digest(edit)},
        }
        self.run.write_json_part(facts, "selection", spec)

    def _selected(self, table: pd.DataFrame, n_layers: int) -> tuple[Selection, str]:
        """The candidate that a recipe fixes or selects, and a sentence on how."""
        fixed = self.recipe.layer_of(n_layers)
        if fixed is not None:
            chosen = candidate(table, layer=fixed, position=-1)
            seen = ", scored on prompts that it was found on" if self.recipe.fit_on == "anchors" else ""
            return chosen, f"Layer {fixed}, as the recipe or the user fixed it{seen}"
        try:
            chosen = select(table, n_layers=n_layers, rule=self._rule)
        except MechsafetyError as error:
            note = f"No candidate passed: {error}. The study goes on with the nearest one"
            return nearest(table, n_layers=n_layers), note
        return chosen, chosen.explain()

    def _confirmed(
        self, spec: str, model: TransformerBridge, directions: Directions, table: pd.DataFrame
    ) -> pd.DataFrame:
        """The scores with what the model writes under the first candidates; no report prompt is read."""
        return confirm(
            model,
            table,
            directions,
            self.anchors_of(spec).to_choose,
            edit=partial(self.recipe.build, alpha=self.config.alpha, n_layers=model.cfg.n_layers),
            candidates=self.config.confirm,
            max_new_tokens=self.config.max_new_tokens,
            seed=self.config.seed,
            batch_size=self.config.batch_size,
            journal=Journal(self.run.part_path("confirmation", spec, suffix="jsonl")),
            keep=partial(self._keep_confirmed, spec),
        )

    def _keep_confirmed(self, spec: str, place: Place, answers: Sequence[Completion]) -> None:
        position, layer = place
        found = answer_frame(answers, system=spec, position=position, layer=layer)
        self.run.write_part(found, "confirmed", spec, f"{position},{layer}")

    def selection(self, spec: str) -> dict[str, Any]:
        return self.run.read_json_part("selection", spec)

    def edit(self, spec: str, arm: str) -> Edit | None:
        return None if arm == "original" else self._edit(spec, arm)

    def _edit(self, spec: str, arm: str) -> Edit:
        direction = direction_of(self.run, spec)
        if arm.startswith(RANDOM):
            direction = direction_of_arm(self._controls(spec, direction), direction, arm)
        return _build(self.run, self.config, spec, direction)

    def _controls(self, spec: str, direction: Direction) -> pd.DataFrame:
        """The random directions of one system."""

        def read(position: int) -> ResidualCache:
            kept = self._streams.pop(spec, None)
            if kept is not None:
                return kept.at(position)
            return self._stream(spec, self.fit_prompts(spec), (position,))

        return draw_controls(self.session, spec, direction, config=self.config, read=read)
