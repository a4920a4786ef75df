"""Self-judgement of a finished study, in a run folder: what ``mechsafety selfjudge`` does.

Each system is asked, with and without the edit, about the answers that it gave with and without the edit. Every
(system, judging arm, judged arm, form) is a part of the run; a part that is there is not made again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechsafety.annotation.labels import responses_sha256
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import QUESTION_FORMS
from mechsafety.edits.interventions import Edit, digest
from mechsafety.experiments.selfjudgement.config import SelfJudgeConfig
from mechsafety.experiments.selfjudgement.tables import calibration, two_by_two
from mechsafety.experiments.study.config import StudyConfig
from mechsafety.experiments.study.results import measured_systems
from mechsafety.experiments.study.work import edit_of
from mechsafety.judges.selfjudgement import Exchange, ask_logits, ask_words
from mechsafety.models.loading import load_model, load_record
from mechsafety.models.provenance import of_models
from mechsafety.runs.folder import (
    Provenance,
    RunFolder,
    differences,
    open_run,
    pinned_date,
    read_run,
    record_date,
)
from mechsafety.statistics import ARMS, PROMPT_LABELS

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class SelfJudgeRun:
    """Finished self-judgements: where they lie, a row a cell, and the reliability curves."""

    path: Path
    table: pd.DataFrame
    calibration: pd.DataFrame

    def _repr_html_(self) -> str:
        shown = self.table.round(3).to_html(index=False, border=0)
        return f"<b>Self-judgement</b> in {escape(str(self.path))}{shown}"


def run_selfjudge(
    config: SelfJudgeConfig, out: Path, *, say: Say = lambda _: None, allow_other_versions: bool = False
) -> SelfJudgeRun:
    """Ask every system of the study in ``config.study`` about its answers, in the folder ``out``, or go on there.

    ``limit`` takes so many prompts of each label, by the seed, the same for all arms and systems. Raises
    :class:`MechsafetyError` for a run that is no finished study, systems that it does not have, weights that are no
    longer those of the study, and edits that cannot be rebuilt as they were.
    """
    study = read_run(config.study)
    made = _study_config(study)
    responses, verdicts = _answers(study, made)
    systems = _systems(study, config.systems)
    seed = made.seed if config.seed is None else config.seed
    chosen = _chosen(responses, config.limit, seed=seed)
    edits = {system: _edit(study, made, system) for system in systems}
    asked = {
        "kind": "selfjudge",
        "study": config.study.name,
        "responses_sha256": responses_sha256(responses),
        "judge": made.primary_judge,
        "systems": list(systems),
        "limit": config.limit,
        "forms": [form for form in QUESTION_FORMS if form in config.forms],
        "dtype": config.dtype or made.dtype,
        "device": config.device or made.device,
        "template": made.template,
        "date": config.date or study.manifest.get("date") or made.date,
        "seed": seed,
        "edits": {system: digest(edit) for system, edit in edits.items()},
    }
    day = pinned_date(out, asked["date"])
    started = time.perf_counter()
    sources = of_models(*systems, **_loading(asked))
    _require_those_of(study, sources)
    with open_run(out, config=asked, sources=sources, allow_other_versions=allow_other_versions) as run:
        record_date(run, day)
        work = _Work(
            run=run,
            asked=asked | {"date": day},
            responses=responses[responses["id"].isin(chosen)],
            edits=edits,
            fingerprints={s: study.manifest["systems"][s]["model"].get("fingerprint") for s in systems},
            say=say,
        )
        for system in systems:
            work.system(system)
        judgements = work.judgements().merge(
            verdicts[["system", "response_arm", "id", "label", "verdict"]],
            on=["system", "response_arm", "id"],
            how="left",
            validate="many_to_one",
        )
        say("tables")
        table, curves = two_by_two(judgements, seed=seed), calibration(judgements)
        run.write_table(judgements, "judgements.parquet")
        run.write_table(table, "selfjudge_2x2.csv")
        run.write_table(curves, "calibration.csv")
        run.record_item("timings", "last_session_s", round(time.perf_counter() - started, 1))
    return SelfJudgeRun(path=run.path, table=table, calibration=curves)


def _study_config(study: RunFolder) -> StudyConfig:
    stored = study.manifest["config"]
    if "judges" not in stored or "systems" not in study.manifest:
        kind = stored.get("kind", "study")
        raise MechsafetyError(
            f"run {str(study.path)!r} is no finished study (it is of kind {kind!r}): run mechsafety study first, and "
            "name its folder"
        )
    return StudyConfig.model_validate({k: v for k, v in stored.items() if k in StudyConfig.model_fields})


def _answers(study: RunFolder, made: StudyConfig) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The study's responses, and the primary judge's verdicts on them."""
    verdicts = study.read_table("verdicts.parquet")
    primary = verdicts[verdicts["judge"] == made.primary_judge]
    return study.read_table("responses.parquet"), primary.rename(columns={"arm": "response_arm"})


def _systems(study: RunFolder, wanted: Sequence[str]) -> tuple[str, ...]:
    have = list(measured_systems(study.manifest))
    if strange := [system for system in wanted if system not in have]:
        raise MechsafetyError(f"the study has no system {strange[0]!r}; it has {', '.join(have)}")
    return tuple(dict.fromkeys(wanted)) or tuple(have)


def _loading(asked: dict[str, Any]) -> dict[str, Any]:
    return {name: asked[name] for name in ("dtype", "device", "template")}


def _require_those_of(study: RunFolder, sources: Mapping[str, Provenance]) -> None:
    """The systems must be those that answered in the study; their number format and device may be others."""
    recorded = study.manifest.get("sources", {})
    for name, made_from in sources.items():
        if changed := differences(recorded.get(name, made_from.identity), made_from.identity):
            what = ", ".join(line.partition(":")[0] for line in changed)
            raise MechsafetyError(
                f"the {what} of {name!r} {'is' if len(changed) == 1 else 'are'} no longer what answered in the study; "
                "run the study again"
            )


def _chosen(responses: pd.DataFrame, limit: int | None, *, seed: int) -> set[str]:
    ids = responses[["id", "label"]].drop_duplicates()
    chosen: set[str] = set()
    for label in PROMPT_LABELS:
        every = list(ids["id"][ids["label"] == label])
        chosen.update(every if limit is None else random.Random(seed).sample(every, min(limit, len(every))))
    return chosen


def _edit(study: RunFolder, made: StudyConfig, system: str) -> Edit:
    """The edit under which the study's answers were written, checked against its record."""
    if not study.has_part("selection", system, suffix="json"):
        raise MechsafetyError(
            f"run {str(study.path)!r} lacks the parts from which the edit of {system!r} is rebuilt: keep its folder "
            "parts, or run the study again"
        )
    edit = edit_of(study, made, system)
    recorded = study.manifest["systems"][system]["edit"]["sha256"]
    if digest(edit) != recorded:
        raise MechsafetyError(
            f"the edit of {system!r} rebuilt from {str(study.path)!r} has the hash {digest(edit)[:16]}, the study used "
            f"{recorded[:16]}: its parts were changed; run the study again"
        )
    return edit


@dataclass(kw_only=True)
class _Work:
    run: RunFolder
    asked: dict[str, Any]
    responses: pd.DataFrame
    edits: dict[str, Edit]
    fingerprints: dict[str, str | None]
    say: Say

    def system(self, system: str) -> None:
        """Every cell of one system that is not there yet; the model is loaded for the first of them."""
        todo = [cell for cell in self._cells(system) if not self.run.has_part("asked", *cell)]
        if not todo:
            return
        self.say(f"loading {system}")
        model = self._model(system)
        for number, (_, judge_arm, response_arm, form) in enumerate(todo, start=1):
            self.say(
                f"{system} [{number}/{len(todo)}] {form}: {judge_arm} model about {response_arm} answers"
            )
            edit = self.edits[system] if judge_arm == "edited" else None
            rows = self._ask(model, self._exchanges(system, response_arm), edit, form)
            self.run.write_part(rows, "asked", system, judge_arm, response_arm, form)

    def judgements(self) -> pd.DataFrame:
        """All parts, in the order of the systems."""
        parts = [
            self.run.read_part("asked", *cell).assign(
                **dict(zip(("system", "judge_arm", "response_arm", "form"), cell, strict=True))
            )
            for system in self.edits
            for cell in self._cells(system)
        ]
        return pd.concat(parts, ignore_index=True)

    def _cells(self, system: str) -> list[tuple[str, str, str, str]]:
        return [
            (system, judge_arm, response_arm, form)
            for form in self.asked["forms"]
            for judge_arm in ARMS
            for response_arm in ARMS
        ]

    def _model(self, system: str) -> TransformerBridge:
        loading = _loading(self.asked)
        for name, made_from in of_models(system, **loading).items():
            self.run.require_source(name, made_from)
        model = load_model(system, **loading, date=self.asked["date"])
        record = load_record(model)
        if record is not None and self.fingerprints[system] not in (None, record.fingerprint):
            raise MechsafetyError(
                f"the weights of {system!r} are no longer those that answered in the study; run the study again"
            )
        return model

    def _exchanges(self, system: str, arm: str) -> list[Exchange]:
        rows = self.responses[(self.responses["system"] == system) & (self.responses["arm"] == arm)]
        return [
            Exchange(id=i, prompt=p, response=r)
            for i, p, r in zip(rows["id"], rows["prompt"], rows["response"], strict=True)
        ]

    def _ask(
        self, model: TransformerBridge, exchanges: list[Exchange], edit: Edit | None, form: str
    ) -> pd.DataFrame:
        if form == "logit":
            said = ask_logits(model, exchanges, edit=edit, seed=self.asked["seed"])
        else:
            said = ask_words(model, exchanges, edit=edit)
        return pd.DataFrame([asdict(one) for one in said])
