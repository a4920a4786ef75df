"""Self-judgement of a finished study as an experiment: what ``mechsafety selfjudge`` runs.

Each system is asked, with and without the edit, about the answers that it gave with and without the edit. Every
(system, judging arm, judged arm, form) is a part of the run, and so is what untrained networks of a system's size score
on the answers of an arm; a part that is there is not made again.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from mechsafety.annotation.labels import responses_sha256
from mechsafety.core.errors import MechsafetyError, way
from mechsafety.core.names import QUESTION_FORMS
from mechsafety.core.progress import Progress, progress_line, with_progress
from mechsafety.core.wording import two_digits
from mechsafety.edits.interventions import Edit, digest
from mechsafety.engines.tasks import Task
from mechsafety.experiments.base import Experiment
from mechsafety.experiments.parallel import Parallel
from mechsafety.experiments.result import Result
from mechsafety.experiments.running import run_experiment
from mechsafety.experiments.selfjudgement.config import SelfJudgeConfig
from mechsafety.experiments.selfjudgement.figures import selfjudge_figures
from mechsafety.experiments.selfjudgement.findings import findings
from mechsafety.experiments.selfjudgement.tables import CELL, UNTRAINED, calibration, two_by_two
from mechsafety.experiments.session import Session
from mechsafety.experiments.study.config import StudyConfig, stored_config
from mechsafety.experiments.study.findings import measured_systems
from mechsafety.experiments.study.systems import edit_of
from mechsafety.judges.selfjudgement import Exchange, ask_logits, ask_untrained, ask_words
from mechsafety.models.loading import load_record
from mechsafety.runs.folder import Provenance, RunFolder, differences, read_run
from mechsafety.statistics.tables import ARMS, PROMPT_LABELS

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from transformer_lens.model_bridge import TransformerBridge


_SHOWN = [
    *("system", "judge_arm", "response_arm", "form", "n", "readable", "refusals", "unparsed", "agreement"),
    *("majority", "auc", "low", "high", "auc_shuffled", "auc_length", "auc_untrained", "both_yes", "ece"),
]


class SelfJudging(Experiment[SelfJudgeConfig], Parallel):
    """Questions to the systems of the study in ``config.study``, about the answers that it keeps."""

    kind = "selfjudge"
    tables: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "cells": "selfjudge_2x2.csv",
            "calibration": "calibration.csv",
            "judgements": "judgements.parquet",
        }
    )
    long = frozenset({"judgements"})

    def __init__(self, config: SelfJudgeConfig) -> None:
        self.study = read_run(config.study)
        self.recorded = self.study.manifest  # workers read no file of the study
        self.made = _study_config(self.study)
        day = config.date or self.recorded.get("date") or self.made.date
        super().__init__(
            config.model_copy(
                update={
                    "systems": _systems(self.study, config.systems),
                    "forms": tuple(form for form in QUESTION_FORMS if form in config.forms),
                    "dtype": config.dtype or self.made.dtype,
                    "device": config.device or self.made.device,
                    "date": day,
                    "seed": self.made.seed if config.seed is None else config.seed,
                }
            )
        )
        self.responses = self.study.read_table("responses.parquet")
        self._model: dict[str, TransformerBridge] = {}
        self.edits = {system: _edit(self.study, self.made, system) for system in self.config.systems}

    @property
    def seed(self) -> int:
        return self.config.seed or 0

    @property
    def loading(self) -> dict[str, Any]:
        # A study whose models were divided is judged with them divided, unless a device is named.
        device = {"device": self.config.device, "device_map": None, "max_memory": None}
        moved = device if self.config.device != self.made.device else {}
        return self.made.loading | {"dtype": self.config.dtype} | moved

    def bound(self) -> Mapping[str, Any]:
        return {
            "study": self.config.study.name,
            "responses_sha256": responses_sha256(self.responses),
            "judge": self.made.primary_judge,
            "template": self.made.template,
            "edits": {system: digest(edit) for system, edit in self.edits.items()},
        }

    def models(self) -> Sequence[str]:
        return self.config.systems

    def sources(self) -> Mapping[str, Provenance]:
        """The systems, which must be those that answered in the study; their number format and device may be others."""
        sources, recorded = super().sources(), self.recorded.get("sources", {})
        for name, made_from in sources.items():
            if changed := differences(recorded.get(name, made_from.identity), made_from.identity):
                what = ", ".join(line.partition(":")[0] for line in changed)
                raise MechsafetyError(
                    f"the {what} of {name!r} {'is' if len(changed) == 1 else 'are'} no longer what answered in the "
                    "study; run the study again"
                )
        return sources

    def work(self, session: Session) -> Mapping[str, pd.DataFrame]:
        for task in self.tasks(session.run):
            if not task.done:
                self.do(task, session)
        return self.finish(session)

    def tasks(self, run: RunFolder) -> list[Task]:
        return _tasks(run, self.config.systems, self.config.forms)

    @classmethod
    def stored_tasks(cls, run: RunFolder) -> list[Task]:
        config = run.manifest["config"]
        return _tasks(run, config["systems"], config["forms"])

    def held(self) -> list[str]:
        return [*self._model]

    def do(self, task: Task, session: Session) -> None:
        """Ask what one cell is about, or untrained networks about the answers of an arm, and keep it."""
        stage, system, *arms = task.name
        if system not in self._model:
            self._model = {}  # before the next one takes memory
            self._model = {system: session.load(system)}
            self._require_weights(system, self._model[system])
        if stage == "untrained":
            session.say(f"{system}: untrained networks about {arms[0]} answers")
            asked = self._exchanges(system, arms[0])
            try:
                scores = ask_untrained(self._model[system], asked, seed=self.seed)
            except BaseException:
                self._model = {}  # its weights may not be its own again
                raise
            table = pd.DataFrame(scores, columns=list(UNTRAINED)).assign(id=[one.id for one in asked])
        else:
            judge_arm, response_arm, form = arms
            session.say(f"{system} {form}: {judge_arm} model about {response_arm} answers")
            model, edit = self._model[system], self.edits[system] if judge_arm == "edited" else None
            asked = self._exchanges(system, response_arm)
            judged = (
                ask_logits(model, asked, edit=edit, seed=self.seed)
                if form == "logit"
                else ask_words(model, asked, edit=edit)
            )
            table = pd.DataFrame([asdict(one) for one in judged])
        session.run.write_part(table, *task.name)

    def _exchanges(self, system: str, arm: str) -> list[Exchange]:
        chosen = _chosen(self.responses, self.config.limit, seed=self.seed)
        mine = (self.responses["system"] == system) & (self.responses["arm"] == arm)
        return Exchange.of(self.responses[mine & self.responses["id"].isin(chosen)])

    def finish(self, session: Session) -> Mapping[str, pd.DataFrame]:
        verdicts = self.study.read_table("verdicts.parquet").rename(columns={"arm": "response_arm"})
        primary = verdicts[verdicts["judge"] == self.made.primary_judge]
        joined = ["system", "response_arm", "id"]
        judgements = self._judgements(session.run).merge(
            primary[[*joined, "label", "verdict"]], on=joined, how="left", validate="many_to_one"
        )
        session.say("tables")
        cells = two_by_two(judgements, seed=self.seed)
        return {"cells": cells, "calibration": calibration(judgements), "judgements": judgements}

    def _require_weights(self, system: str, model: TransformerBridge) -> None:
        record = load_record(model)
        known = self.recorded["systems"][system]["model"].get("fingerprint")
        if record is not None and known not in (None, record.fingerprint):
            raise MechsafetyError(
                f"the weights of {system!r} are no longer those that answered in the study; run the study again"
            )

    def _judgements(self, run: RunFolder) -> pd.DataFrame:
        """All parts, in the order of the systems."""
        parts = []
        for stage, *cell in (task.name for task in self.tasks(run)):
            if stage == "untrained":
                continue
            part = run.read_part(stage, *cell)
            if cell[-1] == "logit":
                control = run.read_part("untrained", cell[0], cell[2])
                part = part.merge(control, on="id", validate="one_to_one")
            parts.append(part.assign(**dict(zip(CELL, cell, strict=True))))
        return pd.concat(parts, ignore_index=True)

    @classmethod
    def figures(cls, result: Result) -> dict[str, go.Figure]:
        return selfjudge_figures(result.tables["cells"], result.tables["calibration"])

    @classmethod
    def findings(cls, result: Result) -> list[str]:
        return findings(result.tables["cells"])

    @classmethod
    def facts(cls, result: Result) -> dict[str, Any]:
        return {name: result.tables[name] for name in ("cells", "calibration")}

    @classmethod
    def text(cls, result: Result) -> str:
        return result.tables["cells"][_SHOWN].to_string(index=False, na_rep="-", float_format=two_digits)


@with_progress
def run_selfjudge(
    config: SelfJudgeConfig,
    out: str | Path,
    *,
    say: Progress = progress_line,
    progress: bool = True,  # noqa: ARG001 - with_progress reads it
    allow_other_versions: bool = False,
) -> Result:
    """Ask every system of the study in ``config.study`` about its answers, in the folder ``out``, or go on there.

    ``limit`` takes so many prompts of each label, by the seed, the same for all arms and systems. Raises
    :class:`MechsafetyError` for a run that is no finished study, systems that it does not have, weights that are no
    longer those of the study, and edits that cannot be rebuilt as they were.

    ``progress=False`` turns off bars and lines on the work; ``say`` receives the lines instead.

    Returns:
        The finished run: its tables, figures, findings and report.

    Example:
        >>> config = ms.judges.SelfJudgeConfig(study="runs/study", limit=2, forms=("logit",))
        >>> run = ms.judges.run_selfjudge(config, "runs/selfjudge", progress=False)
        >>> len(run.tables["cells"])  # each arm asked about each arm's answers
        4
    """
    return run_experiment(SelfJudging(config), out, say=say, allow_other_versions=allow_other_versions)


def _tasks(run: RunFolder, systems: Sequence[str], forms: Sequence[str]) -> list[Task]:
    """A task for each cell: a system, its judging arm, the judged arm, and the form of the question.

    Then one for each arm whose answers untrained networks are asked about, by log-probability alone.
    """
    names: list[tuple[str, ...]] = []
    for system in systems:
        names += [("asked", system, *arms, form) for form in forms for arms in product(ARMS, ARMS)]
        names += [("untrained", system, arm) for arm in ARMS if "logit" in forms]
    return [Task(name=name, done=run.has_part(*name), model=name[1]) for name in names]


def _study_config(study: RunFolder) -> StudyConfig:
    stored = study.manifest["config"]
    if "judges" not in stored or "systems" not in study.manifest:
        raise MechsafetyError(
            f"run {str(study.path)!r} is no finished study (it is of kind {stored.get('kind', 'study')!r}): run "
            f"{way('mechsafety study', 'ms.run_study')} first, and name its folder"
        )
    return stored_config(stored)


def _systems(study: RunFolder, wanted: Sequence[str]) -> tuple[str, ...]:
    have = list(measured_systems(study.manifest))
    if strange := [system for system in wanted if system not in have]:
        raise MechsafetyError(f"the study has no system {strange[0]!r}; it has {', '.join(have)}")
    return tuple(dict.fromkeys(wanted)) or tuple(have)


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
