"""The work of a study, part by part: systems x prompts x judges -> tables.

For each system: load -> residual streams of the fit prompts -> directions -> scores on the validation prompts -> one
selected direction -> an edit -> responses of both arms, and of random directions removed in the same way -> verdicts of
every judge -> self-judgement. Each arrow ends in a part on disk; a part that is there is not made again. A system whose
numbers are not finite is left out and named; the others go on.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechsafety.core.errors import MechsafetyError, NotFiniteError
from mechsafety.core.names import THOUGHT_END
from mechsafety.core.verdict import Judge, Response, Verdict
from mechsafety.directions.activations import ResidualCache, residual_stream
from mechsafety.directions.direction import (
    Direction,
    Directions,
    find_directions,
    principal_plane,
    save_directions,
)
from mechsafety.edits.interventions import Edit, digest
from mechsafety.edits.recipes import Recipe, recipe
from mechsafety.experiments.agreement.tables import judge_tables
from mechsafety.experiments.base import Session
from mechsafety.experiments.judging import ask, verdict_columns
from mechsafety.experiments.study.config import StudyConfig
from mechsafety.experiments.study.controls import (
    RANDOM,
    answered_draws,
    control_tables,
    direction_of_arm,
    draw_controls,
    random_arms,
)
from mechsafety.experiments.thoughts import kept_thoughts
from mechsafety.generation.answered import Completion, answer_frame, asked_in
from mechsafety.generation.completions import Sampling, overridden_defaults
from mechsafety.generation.resumable import resumable_responses, resumable_under_each
from mechsafety.generation.scoring import answer_nll
from mechsafety.judges.checks import check_judge
from mechsafety.judges.kinds.dawid_skene import fitted_verdicts
from mechsafety.judges.label_order import label_order
from mechsafety.judges.panel import member_specs, members_of
from mechsafety.judges.registry import asks_a_model, is_pooled, load_judge
from mechsafety.judges.selfjudgement import Exchange, self_judge, summarise
from mechsafety.models.chat import after_thoughts, post_instruction_positions, tokenize_prompts
from mechsafety.models.loading import load_record
from mechsafety.models.prefixes import prefix_note
from mechsafety.models.provenance import of_models
from mechsafety.prompts.fed import Fed, fed, fed_record
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.runs.folder import Journal, RunFolder, computing_versions, finite
from mechsafety.statistics.paired import paired_tests
from mechsafety.statistics.raters import agreement
from mechsafety.statistics.rates import refusal_rates
from mechsafety.statistics.tables import ARMS
from mechsafety.sweeps.behaviour import treated_as_labelled
from mechsafety.sweeps.confirmation import confirm
from mechsafety.sweeps.edit_costs import EditCosts
from mechsafety.sweeps.measures import MeasureChoice, refusal_measure
from mechsafety.sweeps.openings import ANSWER_TOKENS, kept_own_refusals
from mechsafety.sweeps.refusal_scores import LEAST_REFUSALS, OwnRefusals
from mechsafety.sweeps.selection import Place, Selection, candidate, nearest, no_gap, select
from mechsafety.sweeps.sweep import sweep

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Arm = tuple[str, str]
_RESPONSE_COLUMNS = [
    *("system", "arm", "id", "label", "category", "prompt", "response", "finish"),
    *("n_prompt_tokens", "n_tokens", "nll", "messages"),
]
"""The last one where prompts are conversations."""
_KEPT_STREAM = 2**30
"""Bytes of the fit prompts' residual stream that are kept for the random directions, which else read it anew."""


def _separate(judge: str) -> list[str]:
    """The judges that read one arm at a time: itself, or the members of one that is fitted on all arms."""
    return members_of(judge) if is_pooled(judge) else [judge]


def edit_of(run: RunFolder, config: StudyConfig, spec: str) -> Edit:
    """The edit that the study of ``config`` in ``run`` puts on system ``spec``, from its directions and selection."""
    return _build(run, config, spec, direction_of(run, spec))


def direction_of(run: RunFolder, spec: str) -> Direction:
    """The direction that the study in ``run`` selected for system ``spec``."""
    directions = Directions.load(run.part_path("directions", spec, suffix="safetensors"))
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
class StudyWork:
    """One session of a study. Without ``report`` and ``anchors`` it judges, and makes tables of what is there."""

    config: StudyConfig
    session: Session
    report: PromptSet = field(default_factory=lambda: PromptSet(()))
    anchors: PromptSet = field(default_factory=lambda: PromptSet(()))

    def __post_init__(self) -> None:
        self.run, self.say, self.recipe = self.session.run, self.session.say, recipe_of(self.config)
        self._fed: dict[str, tuple[Fed, Fed]] = {}
        self._models: dict[str, TransformerBridge] = {}
        self._judges: dict[str, Judge] = {}
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

    # -- one system -----------------------------------------------------------------------------

    def try_system(self, spec: str, title: str) -> None:
        """Everything about one system; where its numbers are not finite it is marked as failed.

        It is tried again under other versions or on another device, where numbers may be finite.
        """
        part = self.run.part_path("failed", spec, suffix="json")
        now = self._circumstance(spec)
        again = f"name a new folder, or delete {part.relative_to(self.run.path)} in the run to try it again"
        if (why := self.failure(spec)) is not None:
            if self.run.read_json_part("failed", spec).get("circumstance") == now:
                self.say(f"{title} · failed in an earlier session and is not tried again: {why} ({again})")
                return
            part.unlink()
        try:
            self.system(spec, title)
        except NotFiniteError as error:
            self.run.write_json_part({"failed": str(error), "circumstance": now}, "failed", spec)
            self.say(f"{title} · failed: {error} ({again})")

    def _circumstance(self, spec: str) -> dict[str, Any]:
        """What may change numbers and is no part of the configuration."""
        (made_from,) = of_models(spec, **self.config.loading).values()
        return {"versions": computing_versions(), **made_from.circumstance}

    def failure(self, spec: str) -> str | None:
        """Why a system could not be measured."""
        if not self.run.has_part("failed", spec, suffix="json"):
            return None
        return self.run.read_json_part("failed", spec)["failed"]

    def system(self, spec: str, title: str) -> None:
        """Everything about one system, part by part."""
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
        for arm in ARMS:
            with session.timed(spec, f"generate {arm}"):
                if not run.has_part("responses", spec, arm):
                    self.say(f"{title} · {arm}: {len(self._asked(spec, arm))} responses")
                    self._responses(spec, arm)
        random = random_arms(self.config, self.report)
        with session.timed(spec, "generate random"):
            if missing := [arm for arm in random if not run.has_part("responses", spec, arm)]:
                n = len(self._asked(spec, random[0]))
                self.say(f"{title} · {len(missing)} random directions: {n} responses to each")
                self._random_responses(spec, missing)
        for arm in [*ARMS, *random]:
            self.judge(spec, arm, title)
            if arm not in ARMS:
                continue
            with session.timed(spec, "self-judgement"):
                if self.config.selfjudge and not run.has_part("selfjudge", spec, arm):
                    self.say(f"{title} · {arm}: self-judgement")
                    self._selfjudge(spec, arm)

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
        return Directions.load(self.run.part_path("directions", spec, suffix="safetensors"))

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

    # -- responses ------------------------------------------------------------------------------

    def _asked(self, spec: str, arm: str) -> PromptSet:
        """The prompts of one arm: the harmful ones alone where a random direction is removed."""
        prompts = self.fed(spec)[0].prompts
        return prompts if arm in ARMS else prompts.harmful

    def _responses(self, spec: str, arm: str) -> None:
        """Generate what is missing of one arm, batch by batch, then join the batches."""
        model, config = self.model(spec), self.config
        table = resumable_responses(
            self.run,
            model,
            self._asked(spec, arm),
            key=(spec, arm),
            edit=self.edit(spec, arm),
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
            batch_size=config.batch_size,
            sampling=Sampling(**config.sampling.model_dump()) if config.sampling else None,
            say=self.say,
        )
        self._write_responses(spec, arm, table)

    def _random_responses(self, spec: str, arms: Sequence[str]) -> None:
        """The same for random directions, which share batches where nothing is drawn."""
        config = self.config
        edits = {arm: self._edit(spec, arm) for arm in arms}
        # Before the responses, whose presence tells a resumed study that the arm is done.
        if harmless := self.fed(spec)[0].prompts.harmless:
            costs = EditCosts(model=self.model(spec), prompts=harmless)
            for arm, edit in {"edited": self._edit(spec, "edited"), **edits}.items():
                self.session.json_part("kl", spec, arm, make=partial(costs.kl, edit))
        if config.sampling:
            for arm in arms:
                self._responses(spec, arm)
        else:
            table = resumable_under_each(
                self.run,
                self.model(spec),
                self._asked(spec, arms[0]),
                key=(spec, "random"),
                edits=edits,
                max_new_tokens=config.max_new_tokens,
                seed=config.seed,
                batch_size=config.batch_size,
                say=self.say,
            )
            for arm, rows in table.groupby("arm", sort=False):
                self._write_responses(spec, str(arm), rows.drop(columns="arm").reset_index(drop=True))

    def _write_responses(self, spec: str, arm: str, table: pd.DataFrame) -> None:
        table["nll"] = self._nll(self.model(spec), table) if self.config.nll else float("nan")
        self.run.write_part(table.assign(system=spec, arm=arm), "responses", spec, arm)

    def _nll(self, model: TransformerBridge, table: pd.DataFrame) -> list[float]:
        contexts = tokenize_prompts(model, asked_in(table))
        answers = [[int(t) for t in tokens] for tokens in table["tokens"]]
        n_thought = table["n_thought_tokens"].tolist()
        found = answer_nll(model, contexts, answers, n_thought=n_thought, ids=list(table["id"]))
        return [float("nan") if value is None else round(value, 5) for value in found]

    def responses(self, spec: str, arm: str) -> pd.DataFrame:
        return self.run.read_part("responses", spec, arm)

    # -- verdicts -------------------------------------------------------------------------------

    def judge_all(self) -> None:
        """Every verdict that is missing on responses that are there; raises where the study lacks them."""
        for spec, arm in self.arms():
            if not self.run.has_part("responses", spec, arm):
                raise MechsafetyError(
                    f"run {str(self.run.path)!r} lacks the responses of {spec!r} among its parts: keep its folder "
                    "parts, or run the study again"
                )
            self.judge(spec, arm, spec)

    def judge(self, spec: str, arm: str, title: str) -> None:
        """The verdicts of every judge on one arm's responses; of the primary one alone for random directions."""
        judges = self.config.judges if arm in ARMS else self.config.judges[:1]
        for judge in dict.fromkeys(one for several in judges for one in _separate(several)):
            with self.session.timed(spec, f"judge {judge}"):
                if not self.run.has_part("verdicts", judge, spec, arm):
                    self.say(f"{title} · {arm}: judge {judge}")
                    self._verdicts(judge, spec, arm)

    def _verdicts(self, judge: str, spec: str, arm: str) -> None:
        table = self.responses(spec, arm)
        responses = [
            Response(id=i, prompt=p, text=t, nll=None if n != n else float(n))
            for i, p, t, n in zip(table["id"], table["prompt"], table["response"], table["nll"], strict=True)
        ]
        if judge not in self._judges:
            self._judges[judge] = load_judge(judge, models=self.model)
        try:
            self._check(judge)
            verdicts = ask(self._judges[judge], responses)
        except NotFiniteError as error:  # of the judge's model, which is no fault of the system
            raise MechsafetyError(f"judge {judge!r}: {error}") from error
        rows = table[["system", "arm", "id", "label"]].assign(judge=judge, **verdict_columns(verdicts))
        self.run.write_part(rows, "verdicts", judge, spec, arm)

    def _check(self, judge: str) -> None:
        """How a judge that is a model does where the labels are known, once per study."""
        if asks_a_model(judge) and not self.run.has_part("judge_check", judge, suffix="json"):
            found = check_judge(self._judges[judge], ask=ask)
            self.run.write_json_part(finite(found), "judge_check", judge)

    def _pool(self, judge: str, arms: Sequence[Arm]) -> None:
        """The verdicts of a judge that is fitted on all answers together, from its members' verdicts on them."""
        members = member_specs(judge.partition(":")[2])
        parts = {arm: [self.run.read_part("verdicts", member, *arm) for member in members] for arm in arms}
        answers = [(arm, row) for arm in arms for row in range(len(parts[arm][0]))]
        responses = [Response(id=str(number), prompt="", text="") for number in range(len(answers))]
        given = [
            {
                name: Verdict(
                    id="",
                    judge=name,
                    label=part["verdict"].iloc[row],
                    tags=tuple(part["tags"].iloc[row].split()),
                )
                for name, part in zip(members, parts[arm], strict=True)
            }
            for arm, row in answers
        ]
        verdicts = fitted_verdicts(responses, given, judge=judge, members=members)
        for arm in arms:
            mine = [v for v, (one, _) in zip(verdicts, answers, strict=True) if one == arm]
            rows = parts[arm][0][["system", "arm", "id", "label"]]
            self.run.write_part(rows.assign(judge=judge, **verdict_columns(mine)), "verdicts", judge, *arm)

    def _selfjudge(self, spec: str, arm: str) -> None:
        exchanges = Exchange.of(self.responses(spec, arm))
        judged = self_judge(self.model(spec), exchanges, edit=self.edit(spec, arm), seed=self.config.seed)
        rows = pd.DataFrame([asdict(j) for j in judged])
        self.run.write_part(rows.assign(system=spec, arm=arm), "selfjudge", spec, arm)

    # -- tables ---------------------------------------------------------------------------------

    def specs(self) -> list[str]:
        """The systems that could be measured, in the order of the configuration."""
        return [spec for spec in self.config.systems if self.failure(spec) is None]

    def arms(self) -> list[Arm]:
        return [(spec, arm) for spec in self.specs() for arm in ARMS]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Join the parts into the run's tables, in the order of the configuration; none where every system failed."""
        run, config = self.run, self.config
        measured = {s: self.selection(s) | {"generation": self._speeds(s)} for s in self.specs()}
        run.record("systems", {s: measured.get(s) or {"failed": self.failure(s)} for s in config.systems})
        run.record_item(
            "timings", "peak_memory_mb", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        )
        if not measured:
            return {}
        self.say("tables and tests")
        arms, specs = self.arms(), [(spec,) for spec in measured]
        for judge in filter(is_pooled, config.judges):
            random = answered_draws(run, config, list(measured)) if judge == config.primary_judge else []
            self._pool(judge, [*arms, *random])
        verdicts = self._joined("verdicts", [(judge, *arm) for arm in arms for judge in config.judges])
        found = [self.directions(spec) for spec in measured]
        run.save("directions.safetensors", lambda path: save_directions(found, path))
        tables = {
            "rates": refusal_rates(verdicts),
            "tests": paired_tests(verdicts),
            "agreement": agreement(verdicts, seed=config.seed),
            **judge_tables(verdicts, primary=config.primary_judge, seed=config.seed),
            **self._model_judge_tables(verdicts),
            "sweep": self._joined("sweep", specs),
            "scatter": self._joined("scatter", specs),
            "responses": self._joined("responses", arms).filter(items=_RESPONSE_COLUMNS),
            "verdicts": verdicts,
            **self._confirmation_table(list(measured)),
            **control_tables(run, config, list(measured), verdicts, columns=_RESPONSE_COLUMNS),
        }
        return tables | (self._selfjudge_tables(arms, verdicts) if config.selfjudge else {})

    def _model_judge_tables(self, verdicts: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """What is to be known of judges that are models; none where there are no such judges."""
        judges = dict.fromkeys(one for several in self.config.judges for one in members_of(several))
        found = [
            self.run.read_json_part("judge_check", judge)
            for judge in judges
            if self.run.has_part("judge_check", judge, suffix="json")
        ]
        order = label_order(verdicts, ["system", "arm", "label"])
        tables = {"judge_checks": pd.DataFrame(found), "label_order": order}
        return {name: table for name, table in tables.items() if len(table)}

    def _confirmation_table(self, specs: Sequence[str]) -> dict[str, pd.DataFrame]:
        """The answers by which candidates were confirmed; none where scores alone decided."""
        parts = [part for spec in specs for part in self.run.parts("confirmed", spec)]
        if not parts:
            return {}
        return {
            "confirmation_responses": pd.concat([pd.read_parquet(part) for part in parts], ignore_index=True)
        }

    def _joined(self, name: str, keys: Sequence[tuple[str, ...]]) -> pd.DataFrame:
        return pd.concat([self.run.read_part(name, *key) for key in keys], ignore_index=True)

    def _selfjudge_tables(self, arms: Sequence[Arm], verdicts: pd.DataFrame) -> dict[str, pd.DataFrame]:
        outside = verdicts[verdicts["judge"] == self.config.primary_judge]
        judged = self._joined("selfjudge", arms).merge(
            outside[["system", "arm", "id", "label", "verdict"]], how="left"
        )
        return {"selfjudge": summarise(judged, seed=self.config.seed), "selfjudgements": judged}

    def _speeds(self, spec: str) -> dict[str, Any]:
        return {
            arm: self.run.read_json_part("speed", spec, arm)
            for arm in ARMS
            if self.run.has_part("speed", spec, arm, suffix="json")
        }
