"""The granular study: systems x prompts x judges -> tables, resumable at every part.

The way of the data, for each system: load -> residual streams of the fit prompts -> directions -> sweep
on the validation prompts -> one selected direction -> an edit -> responses of both arms -> verdicts of
every judge -> self-judgement. Each arrow ends in a part on disk; a part that is there is not made again.
A system whose numbers are not finite is left out and named; the others go on.
"""

from __future__ import annotations

import json
import resource
import time
from collections import ChainMap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechsafety.core.errors import MechsafetyError, NotFiniteError
from mechsafety.core.verdict import Judge, Response, Verdict
from mechsafety.directions.activations import residual_stream
from mechsafety.directions.direction import Directions, find_directions, principal_plane, save_directions
from mechsafety.edits.interventions import Edit, digest
from mechsafety.edits.recipes import Recipe, recipe
from mechsafety.experiments.agreement.tables import judge_tables
from mechsafety.experiments.study.config import StudyConfig
from mechsafety.experiments.study.prompts import study_prompts
from mechsafety.experiments.study.results import StudyResult
from mechsafety.generation.completions import Sampling, overridden_defaults
from mechsafety.generation.resumable import resumable_responses
from mechsafety.generation.scoring import answer_nll
from mechsafety.judges.asking import AskingJudge
from mechsafety.judges.cache import VerdictCache
from mechsafety.judges.registry import judge_responses, judge_sources, load_judge
from mechsafety.judges.selfjudgement import Exchange, self_judge, summarise
from mechsafety.models.chat import post_instruction_positions, tokenize_prompts
from mechsafety.models.loading import load_model, load_record
from mechsafety.models.prefixes import prefix_note
from mechsafety.models.provenance import of_models
from mechsafety.prompts.fed import Fed, fed, fed_record, require_all_fit
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.prompts.splits import record_repeated
from mechsafety.runs.folder import (
    Provenance,
    RunFolder,
    computing_versions,
    open_run,
    pinned_date,
    record_date,
)
from mechsafety.statistics import ARMS, agreement, paired_tests, refusal_rates
from mechsafety.sweeps.openings import ANSWER_TOKENS, own_refusal_tokens
from mechsafety.sweeps.selection import Selection, candidate, nearest, select
from mechsafety.sweeps.sweep import sweep

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Say = Callable[[str], None]


def run_study(
    config: StudyConfig, out: Path, *, say: Say = lambda _: None, allow_other_versions: bool = False
) -> StudyResult:
    """Run ``config`` in the folder ``out``, or go on where it was interrupted.

    Configuration, prompts and models are checked against the folder's (:func:`open_run`); ``say`` hears one line
    a stage. A system whose numbers are not finite is left out of all tables, also when the study goes on later. Raises
    :class:`MechsafetyError` for prompts that overlap, lack a split or a label.
    """
    report, anchors = study_prompts(config)
    asked = config.model_dump(mode="json") | {
        "prompts_sha256": report.sha256(),
        "anchors_sha256": anchors.sha256(),
    }
    day = pinned_date(out, config.date)
    started = time.perf_counter()

    def sources() -> dict[str, Provenance]:
        loading = config.loading
        of_judges = [judge_sources(judge, loading=loading) for judge in config.judges]
        return dict(ChainMap(of_models(*config.systems, **loading), *of_judges))

    with open_run(out, config=asked, sources=sources, allow_other_versions=allow_other_versions) as run:
        record_date(run, day)
        record_repeated(run, say, report, anchors)
        study = _Study(config=config, run=run, report=report, anchors=anchors, day=day, say=say)
        study.require_room()
        for number, spec in enumerate(config.systems, start=1):
            study.try_system(spec, f"[{number}/{len(config.systems)}] {spec}")
        result = study.tables()
        run.record_item("timings", "last_session_s", round(time.perf_counter() - started, 1))
        run.record_item("timings", "peak_memory_mb", peak_memory_mb())
    return result


def edit_of(run: RunFolder, config: StudyConfig, spec: str) -> Edit:
    """The edit that the study of ``config`` in ``run`` puts on system ``spec``, from its directions and selection."""
    facts = run.read_json_part("selection", spec)
    directions = Directions.load(run.part_path("directions", spec, suffix="safetensors"))
    selected = facts["selection"]
    direction = directions.at(layer=selected["layer"], position=selected["position"])
    return _recipe(config).build(direction, config.alpha, facts["model"]["n_layers"])


def _recipe(config: StudyConfig) -> Recipe:
    return recipe(config.recipe, method=config.direction, centring=config.centring, layer=config.layer)


def peak_memory_mb() -> int:
    """The most memory this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@dataclass(kw_only=True)
class _Study:
    config: StudyConfig
    run: RunFolder
    report: PromptSet
    anchors: PromptSet
    day: str
    say: Say

    def __post_init__(self) -> None:
        self._fed: dict[str, tuple[Fed, Fed]] = {}
        self._models: dict[str, TransformerBridge] = {}
        self._judges: dict[str, Judge] = {}

    # -- models ---------------------------------------------------------------------------------

    def model(self, spec: str) -> TransformerBridge:
        """The loaded model; the last system's is dropped unless it judges."""
        if spec not in self._models:
            judges = {j.partition(":")[2] for j in self.config.judges}
            self._models = {s: m for s, m in self._models.items() if s in judges}
            for name, made_from in of_models(spec, **self.config.loading).items():
                self.run.require_source(name, made_from)  # hours may lie since the run was opened
            self._models[spec] = load_model(spec, **self.config.loading, date=self.day)
        return self._models[spec]

    def fed(self, spec: str) -> tuple[Fed, Fed]:
        """The report prompts and the anchors as they enter the work on one system."""
        if spec not in self._fed:
            self._fed[spec] = self._fed_to(self.model(spec))
        return self._fed[spec]

    def _fed_to(self, model: Any) -> tuple[Fed, Fed]:
        report, anchors = (
            fed(model, prompts, new_tokens=new_tokens, **self._feeding())
            for prompts, new_tokens in self._read()
        )
        return report, anchors

    def _read(self) -> tuple[tuple[PromptSet, int], ...]:
        """The prompts that each system reads, with the tokens that it may add."""
        return (self.report, self.config.max_new_tokens), (self.anchors, ANSWER_TOKENS)

    def _feeding(self) -> dict[str, bool]:
        return {"truncate": self.config.truncate_prompts, "escape": self.config.escape_control_tokens}

    def require_room(self) -> None:
        """Before any work: every prompt fits in the window of every system that has still to read it."""
        todo = [s for s in self.config.systems if not self.run.has_part("responses", s, ARMS[-1])]
        require_all_fit(todo, self._read(), template=self.config.template, date=self.day, **self._feeding())

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
        with self._timed(spec, "directions"):
            if not self.run.has_part("directions", spec, suffix="safetensors"):
                self.say(f"{title} · residual streams and directions")
                self._directions(spec)
        with self._timed(spec, "sweep"):
            if not self.run.has_part("selection", spec, suffix="json"):
                self.say(
                    f"{title} · layer sweep on {self.config.validation} + {self.config.validation} prompts"
                )
                self._sweep(spec)
        for arm in ARMS:
            with self._timed(spec, f"generate {arm}"):
                if not self.run.has_part("responses", spec, arm):
                    self.say(f"{title} · {arm}: {len(self.report)} responses")
                    self._responses(spec, arm)
        for arm in ARMS:
            for judge in self.config.judges:
                with self._timed(spec, f"judge {judge}"):
                    if not self.run.has_part("verdicts", judge, spec, arm):
                        self.say(f"{title} · {arm}: judge {judge}")
                        self._verdicts(judge, spec, arm)
            with self._timed(spec, "self-judgement"):
                if self.config.selfjudge and not self.run.has_part("selfjudge", spec, arm):
                    self.say(f"{title} · {arm}: self-judgement")
                    self._selfjudge(spec, arm)

    @contextmanager
    def _timed(self, spec: str, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        if seconds > 0.05:  # a part that was there takes no time, and keeps the time it took when made
            timings = self.run.manifest.get("timings", {})
            stages = timings.get(spec, {})
            stages[stage] = round(stages.get(stage, 0.0) + seconds, 2)
            self.run.record("timings", timings | {spec: stages})

    def recipe(self) -> Recipe:
        return _recipe(self.config)

    def _directions(self, spec: str) -> None:
        model = self.model(spec)
        chosen = self.recipe()
        positions: tuple[int, ...] = (-1,)
        if chosen.positions == "post_instruction":
            positions = post_instruction_positions(model)
        cache = residual_stream(model, self.anchors_of(spec).to_estimate, positions=positions)
        found = find_directions(cache, method=chosen.method, centring=chosen.centring, seed=self.config.seed)
        target = self.run.part_path("directions", spec, suffix="safetensors")
        self.run.save(str(target.relative_to(self.run.path)), found.save)

    def directions(self, spec: str) -> Directions:
        return Directions.load(self.run.part_path("directions", spec, suffix="safetensors"))

    def _sweep(self, spec: str) -> None:
        model, directions, chosen = self.model(spec), self.directions(spec), self.recipe()
        # None where it hardly refuses: the sweep then goes by its logits.
        validation = self.anchors_of(spec).to_choose
        tokens = own_refusal_tokens(model, validation, seed=self.config.seed)
        swept = sweep(model, directions, validation, refusal_tokens=tokens)
        selection, note = self._select(swept.table, model.cfg.n_layers, chosen)
        direction = directions.at(layer=selection.layer, position=selection.position)
        self.run.write_part(swept.table.assign(system=spec), "sweep", spec)
        self.run.write_part(self._scatter(spec, model, directions, selection), "scatter", spec)
        edit = chosen.build(direction, self.config.alpha, model.cfg.n_layers)
        record = load_record(model)
        facts = {
            "model": record.as_dict() if record else {},
            "overridden_generation_defaults": overridden_defaults(model),
            "shared_tokens": prefix_note(model),
            **fed_record(model, self.fed(spec), escaped=self.config.escape_control_tokens),
            "recipe": chosen.name,
            "recipe_about": chosen.about,
            "selection": asdict(selection),
            "explanation": note,
            "refusal_tokens": asdict(swept.refusal_tokens),
            "base_refusal_score": {
                "harmful": round(swept.base_harmful, 4),
                "harmless": round(swept.base_harmless, 4),
            },
            "validation_prompts_used": {"harmful": swept.n_harmful, "harmless": swept.n_harmless},
            "edit": {"description": edit.describe(), "sha256": digest(edit)},
        }
        self.run.write_json_part(facts, "selection", spec)

    def _select(self, table: pd.DataFrame, n_layers: int, chosen: Recipe) -> tuple[Selection, str]:
        """The candidate a recipe fixes or selects, with a sentence that says how."""
        fixed = chosen.layer_of(n_layers)
        if fixed is not None:
            if fixed > n_layers:
                raise MechsafetyError(f"layer {fixed} of a model with layers 0 to {n_layers}")
            return candidate(
                table, layer=fixed, position=-1
            ), f"Layer {fixed}, as the recipe or the user fixed it"
        rule = self.config.selection or chosen.rule
        try:
            selection = select(table, n_layers=n_layers, rule=rule)
        except MechsafetyError as error:
            selection = nearest(table, n_layers=n_layers)
            return selection, f"No candidate passed: {error}. The study goes on with the nearest one"
        return selection, selection.explain()

    def _scatter(
        self, spec: str, model: TransformerBridge, directions: Directions, selection: Selection
    ) -> pd.DataFrame:
        """Validation prompts in the first two principal components at the selected layer."""
        cache = residual_stream(model, self.anchors_of(spec).to_choose, positions=(selection.position,))
        direction = directions.at(layer=selection.layer, position=selection.position)
        return principal_plane(cache, direction).assign(system=spec)

    def selection(self, spec: str) -> dict[str, Any]:
        return self.run.read_json_part("selection", spec)

    def edit(self, spec: str) -> Edit:
        return edit_of(self.run, self.config, spec)

    # -- responses ------------------------------------------------------------------------------

    def _responses(self, spec: str, arm: str) -> None:
        """Generate what is missing of one arm, batch by batch, then join the batches."""
        model = self.model(spec)
        sampling = self.config.sampling
        table = resumable_responses(
            self.run,
            model,
            self.fed(spec)[0].prompts,
            key=(spec, arm),
            edit=self.edit(spec) if arm == "edited" else None,
            max_new_tokens=self.config.max_new_tokens,
            seed=self.config.seed,
            batch_size=self.config.batch_size,
            sampling=Sampling(**sampling.model_dump()) if sampling else None,
            say=self.say,
        )
        table["nll"] = self._nll(model, table) if self.config.nll else float("nan")
        self.run.write_part(table.assign(system=spec, arm=arm), "responses", spec, arm)

    def _nll(self, model: TransformerBridge, table: pd.DataFrame) -> list[float]:
        contexts = tokenize_prompts(model, list(table["prompt"]))
        answers = [[int(t) for t in tokens] for tokens in table["tokens"]]
        found = answer_nll(model, contexts, answers, ids=list(table["id"]))
        return [float("nan") if value is None else round(value, 5) for value in found]

    def responses(self, spec: str, arm: str) -> pd.DataFrame:
        return self.run.read_part("responses", spec, arm)

    # -- verdicts -------------------------------------------------------------------------------

    def _verdicts(self, judge: str, spec: str, arm: str) -> None:
        table = self.responses(spec, arm)
        responses = [
            Response(id=i, prompt=p, text=t, nll=None if n != n else float(n))
            for i, p, t, n in zip(table["id"], table["prompt"], table["response"], table["nll"], strict=True)
        ]
        if judge not in self._judges:
            self._judges[judge] = load_judge(judge, models=self.model)
        try:
            verdicts = self._ask(self._judges[judge], responses)
        except NotFiniteError as error:  # of the judge's model, which is no fault of the system
            raise MechsafetyError(f"judge {judge!r}: {error}") from error
        rows = pd.DataFrame(
            {
                "system": spec,
                "arm": arm,
                "id": [v.id for v in verdicts],
                "label": list(table.set_index("id")["label"].loc[[v.id for v in verdicts]]),
                "judge": judge,
                "verdict": [v.label for v in verdicts],
                "tags": [" ".join(v.tags) for v in verdicts],
                "detail": [json.dumps(dict(v.detail), sort_keys=True) for v in verdicts],
            }
        )
        self.run.write_part(rows, "verdicts", judge, spec, arm)

    def _ask(self, judge: Judge, responses: Sequence[Response]) -> list[Verdict]:
        """A judge that asks a model keeps each verdict as it comes: an interrupted study asks nothing twice."""
        if not isinstance(judge, AskingJudge):
            return judge_responses(responses, [judge])
        with VerdictCache(self.run.path / "judge_cache.sqlite") as cache:
            return judge_responses(responses, [judge], cache=cache)

    def _selfjudge(self, spec: str, arm: str) -> None:
        table = self.responses(spec, arm)
        exchanges = [
            Exchange(id=i, prompt=p, response=r)
            for i, p, r in zip(table["id"], table["prompt"], table["response"], strict=True)
        ]
        edit = self.edit(spec) if arm == "edited" else None
        judged = self_judge(self.model(spec), exchanges, edit=edit, seed=self.config.seed)
        rows = pd.DataFrame([asdict(j) for j in judged])
        self.run.write_part(rows.assign(system=spec, arm=arm), "selfjudge", spec, arm)

    # -- tables ---------------------------------------------------------------------------------

    def tables(self) -> StudyResult:
        """Join the parts into the run's tables, in the order of the configuration."""
        run, failed = self.run, {s: why for s in self.config.systems if (why := self.failure(s)) is not None}
        specs = [spec for spec in self.config.systems if spec not in failed]
        marks = {spec: {"failed": why} for spec, why in failed.items()}
        if not specs:
            run.record("systems", marks)
            return StudyResult(path=run.path, rates=pd.DataFrame(), tests=pd.DataFrame(), failed=failed)
        self.say("tables and tests")
        arms = [(spec, arm) for spec in specs for arm in ARMS]
        responses = pd.concat([self.responses(*a) for a in arms], ignore_index=True)
        run.write_table(responses[_RESPONSE_COLUMNS], "responses.parquet")
        verdicts = pd.concat(
            [run.read_part("verdicts", judge, *a) for a in arms for judge in self.config.judges],
            ignore_index=True,
        )
        run.write_table(verdicts, "verdicts.parquet")
        run.write_table(
            pd.concat([run.read_part("sweep", s) for s in specs], ignore_index=True), "sweep.parquet"
        )
        run.write_table(
            pd.concat([run.read_part("scatter", s) for s in specs], ignore_index=True), "scatter.parquet"
        )
        run.save(
            "directions.safetensors", lambda path: save_directions([self.directions(s) for s in specs], path)
        )
        rates, tests = refusal_rates(verdicts), paired_tests(verdicts)
        run.write_table(rates, "rates.csv")
        run.write_table(tests, "tests.csv")
        run.write_table(agreement(verdicts, seed=self.config.seed), "agreement.csv")
        chapter = judge_tables(verdicts, primary=self.config.primary_judge, seed=self.config.seed)
        for name, table in chapter.items():
            run.write_table(table, f"{name}.csv")
        if self.config.selfjudge:
            self._selfjudge_tables(arms, verdicts)
        measured = {s: self.selection(s) | {"generation": self._speeds(s)} for s in specs}
        run.record("systems", {s: (measured | marks)[s] for s in self.config.systems})
        return StudyResult(path=run.path, rates=rates, tests=tests, failed=failed)

    def _selfjudge_tables(self, arms: Sequence[tuple[str, str]], verdicts: pd.DataFrame) -> None:
        judged = pd.concat([self.run.read_part("selfjudge", *a) for a in arms], ignore_index=True)
        outside = verdicts[verdicts["judge"] == self.config.primary_judge]
        judged = judged.merge(outside[["system", "arm", "id", "label", "verdict"]], how="left")
        self.run.write_table(judged, "selfjudge.parquet")
        self.run.write_table(summarise(judged, seed=self.config.seed), "selfjudge.csv")

    def _speeds(self, spec: str) -> dict[str, Any]:
        return {
            arm: self.run.read_json_part("speed", spec, arm)
            for arm in ARMS
            if self.run.has_part("speed", spec, arm, suffix="json")
        }


_RESPONSE_COLUMNS = [
    "system",
    "arm",
    "id",
    "label",
    "category",
    "prompt",
    "response",
    "finish",
    "n_prompt_tokens",
    "n_tokens",
    "nll",
]
