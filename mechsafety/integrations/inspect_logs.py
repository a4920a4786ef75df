"""A finished study as inspect_ai logs, one for each (system, arm), so that ``inspect view`` and its readers open it.

Text is stored as the model gave it. Names of folders are left out: see :func:`extras.public_name`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from mechsafety.core.arguments import as_path
from mechsafety.core.errors import MechsafetyError, needs
from mechsafety.core.verdict import Verdict
from mechsafety.integrations.extras import HASH_LENGTH, public_name
from mechsafety.integrations.inspect_scorer import explained
from mechsafety.runs.folder import read_run
from mechsafety.statistics.rates import refusal_rates
from mechsafety.statistics.tables import ABSTAINING_JUDGES

with needs("inspect"):
    from inspect_ai.log import (
        EvalConfig,
        EvalDataset,
        EvalLog,
        EvalMetric,
        EvalPlan,
        EvalResults,
        EvalSample,
        EvalScore,
        EvalSpec,
        EvalStats,
        write_eval_log,
    )
    from inspect_ai.model import (
        ChatCompletionChoice,
        ChatMessageAssistant,
        ChatMessageUser,
        GenerateConfig,
        ModelOutput,
        ModelUsage,
    )
    from inspect_ai.scorer import Score

Format = Literal["eval", "json"]
TASK = "mechsafety/study"


def export_inspect_log(
    run_folder: Path | str, out: Path | str, *, formats: Sequence[Format] = ("eval",)
) -> list[Path]:
    """Write the study in ``run_folder`` into the folder ``out`` as inspect_ai logs; returns the files.

    Each log has the prompts as samples, a score by judge (unscored where the judge gave no label), and each
    judge's counts, rate and Wilson interval by prompt label, the numbers of
    :func:`refusal_rates`. The model is called ``mechsafety/<system>@<hash of the edit>``.
    Unparsed verdicts of a judge that abstains (``degeneracy``) have the reason ``abstained``, those of others
    ``grader_failed``. The same run gives files of the same names.

    Raises :class:`MechsafetyError` for a folder that is not a finished study or cannot be written to.
    """
    if not formats or not set(formats) <= {"eval", "json"}:
        raise MechsafetyError(f"formats {', '.join(formats) or '(none)'}: eval, json or both")
    run = read_run(Path(run_folder))
    manifest = run.manifest
    responses, verdicts = run.read_table("responses.parquet"), run.read_table("verdicts.parquet")
    if "systems" not in manifest:
        raise MechsafetyError(f"run {str(run_folder)!r} is not a finished study: run it again to its end")
    names = {judge: _judge_name(str(judge), manifest["systems"]) for judge in verdicts["judge"].unique()}
    details = [_renamed(json.loads(text), manifest["systems"]) for text in verdicts["detail"]]
    verdicts = verdicts.assign(judge=verdicts["judge"].map(names), detail=details)
    written_at = datetime.fromtimestamp((run.path / "verdicts.parquet").stat().st_mtime, tz=UTC)
    rates = refusal_rates(verdicts)
    folder = _made(as_path(out))
    paths: list[Path] = []
    for (system, arm), rows in responses.groupby(["system", "arm"], sort=False):
        arm_ = _Arm(
            system=str(system),
            arm=str(arm),
            config=manifest["config"],
            facts=manifest["systems"][system],
            written_at=written_at,
        )
        mine = verdicts[(verdicts["system"] == system) & (verdicts["arm"] == arm)]
        log = arm_.log(rows, mine, rates[(rates["system"] == system) & (rates["arm"] == arm)])
        for ending in formats:
            path = folder / f"{arm_.file_name}.{ending}"
            write_eval_log(log, str(path), format=ending)
            paths.append(path)
    return paths


_WORD = re.compile(r"[^\s:,;+()]+")


def _judge_name(judge: str, systems: Mapping[str, Any]) -> str:
    """A judge's name without the folders of the models in it: ``logit:FOLDER``, ``majority:rules,logit:FOLDER``."""

    def short(spec: str) -> str:
        known = systems.get(spec, {}).get("model", {}).get("fingerprint")
        return public_name(spec, known or hashlib.sha256(spec.encode()).hexdigest())

    kind, colon, argument = judge.partition(":")
    if argument in systems or Path(argument).exists():
        return f"{kind}{colon}{short(argument)}"
    return _WORD.sub(lambda word: short(word[0]) if "/" in word[0] else word[0], judge)


def _renamed(detail: Any, systems: Mapping[str, Any]) -> Any:
    """What a judge measured, the names of other judges in its keys shortened like its own."""
    if isinstance(detail, dict):
        return {_judge_name(str(k), systems): _renamed(v, systems) for k, v in detail.items()}
    return [_renamed(v, systems) for v in detail] if isinstance(detail, list) else detail


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MechsafetyError(f"cannot make the folder {str(folder)!r}: {error.strerror}") from None
    return folder


@dataclass(frozen=True, kw_only=True)
class _Arm:
    """One log: a system in one arm of the study."""

    system: str
    arm: str
    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    written_at: datetime

    @property
    def name(self) -> str:
        return public_name(self.system, self.facts.get("model", {}).get("fingerprint", ""))

    @property
    def edit(self) -> str | None:
        """SHA-256 of the edit; None in the original arm."""
        return self.facts["edit"]["sha256"] if self.arm == "edited" else None

    @property
    def model(self) -> str:
        return f"mechsafety/{self.name}" + (f"@{self.edit[:HASH_LENGTH]}" if self.edit else "")

    @property
    def id(self) -> str:
        asked = json.dumps([self.system, self.arm, self.edit, self.config], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()[:22]

    @property
    def file_name(self) -> str:
        # inspect_ai's own pattern: time, task, id.
        return f"{self.written_at:%Y-%m-%dT%H-%M-%S}+00-00_mechsafety-study-{self.arm}_{self.id}"

    def log(self, responses: pd.DataFrame, verdicts: pd.DataFrame, rates: pd.DataFrame) -> EvalLog:
        by_id = {str(i): rows for i, rows in verdicts.groupby("id", sort=False)}
        samples = [self._sample(row, by_id[row["id"]]) for row in responses.to_dict("records")]
        when = self.written_at.isoformat()
        return EvalLog(
            status="success",
            eval=self._spec(samples, when),
            plan=EvalPlan(config=self._generation()),
            results=EvalResults(
                total_samples=len(samples),
                completed_samples=len(samples),
                scores=[_judge_score(str(judge), rows) for judge, rows in rates.groupby("judge", sort=False)],
            ),
            stats=EvalStats(started_at=when, completed_at=when, model_usage={self.model: _all(samples)}),
            samples=samples,
        )

    def _spec(self, samples: Sequence[EvalSample], when: str) -> EvalSpec:
        facts = {
            "system": self.name,
            "arm": self.arm,
            "edit_sha256": self.edit,
            "edit": self.facts["edit"]["description"] if self.edit else None,
            "recipe": self.facts.get("recipe"),
            "model_fingerprint": self.facts.get("model", {}).get("fingerprint"),
            "prompts_sha256": self.config["prompts_sha256"],
        }
        return EvalSpec(
            eval_id=self.id,
            run_id=self.id,
            task_id=self.id,
            created=when,
            task=TASK,
            task_args={"arm": self.arm},
            tags=[self.arm],
            dataset=EvalDataset(
                name="prompts", samples=len(samples), sample_ids=[str(s.id) for s in samples]
            ),
            model=self.model,
            model_generate_config=self._generation(),
            config=EvalConfig(epochs=1),
            metadata=facts,
        )

    def _generation(self) -> GenerateConfig:
        drawn = self.config.get("sampling") or {}
        return GenerateConfig(
            max_tokens=self.config["max_new_tokens"],
            temperature=drawn.get("temperature", 0.0),
            top_p=drawn.get("top_p"),
            seed=self.config["seed"],
        )

    def _sample(self, row: Mapping[str, Any], verdicts: pd.DataFrame) -> EvalSample:
        key = f"{self.id}-{row['id']}"
        asked = ChatMessageUser(id=f"{key}-user", content=row["prompt"])
        reply = ChatMessageAssistant(
            id=f"{key}-assistant", content=row["response"], model=self.model, source="generate"
        )
        n_in, n_out = int(row["n_prompt_tokens"]), int(row["n_tokens"])
        choice = ChatCompletionChoice(
            message=reply, stop_reason="stop" if row["finish"] == "stop" else "max_tokens"
        )
        usage = ModelUsage(input_tokens=n_in, output_tokens=n_out, total_tokens=n_in + n_out)
        return EvalSample(
            id=row["id"],
            epoch=1,
            uuid=hashlib.sha256(key.encode()).hexdigest()[:22],
            input=[asked],
            target="",
            messages=[asked, reply],
            output=ModelOutput(model=self.model, choices=[choice], usage=usage),
            scores={v["judge"]: _score(v, row["response"]) for v in verdicts.to_dict("records")},
            metadata={
                "label": row["label"],
                "category": row["category"],
                "system": self.name,
                "arm": self.arm,
                "edit_sha256": self.edit,
                "nll": None if pd.isna(row["nll"]) else float(row["nll"]),
            },
            model_usage={self.model: usage},
        )


def _all(samples: Sequence[EvalSample]) -> ModelUsage:
    used = [usage for sample in samples for usage in sample.model_usage.values()]
    n_in, n_out = sum(u.input_tokens for u in used), sum(u.output_tokens for u in used)
    return ModelUsage(input_tokens=n_in, output_tokens=n_out, total_tokens=n_in + n_out)


def _score(row: Mapping[str, Any], answer: str) -> Score:
    verdict = Verdict(
        id=row["id"],
        judge=row["judge"],
        label=row["verdict"],
        tags=tuple(row["tags"].split()),
        detail=row["detail"],
    )
    about: dict[str, Any] = {
        "answer": answer,
        "explanation": explained(verdict),
        "metadata": {"tags": list(verdict.tags), "detail": dict(verdict.detail)},
    }
    if verdict.label == "unparsed":
        abstained = verdict.judge in ABSTAINING_JUDGES
        return Score.unscored(reason="abstained" if abstained else "grader_failed", **about)
    return Score(value=verdict.label, **about)


def _judge_score(judge: str, rates: pd.DataFrame) -> EvalScore:
    """One judge's counts and rates, by prompt label: ``harmful_rate``, ``harmful_lower``, ``harmful_n`` ..."""
    columns = {
        **{"rate": "rate", "lower": "low", "upper": "high", "n": "n"},
        **{name: name for name in ("refusal", "compliance", "degenerate", "unparsed")},
    }
    metrics = {
        f"{row['label']}_{name}": EvalMetric(name=f"{row['label']}_{name}", value=row[column])
        for row in rates.to_dict("records")
        for name, column in columns.items()
    }
    unread = int(rates["unparsed"].sum())
    return EvalScore(
        name=judge,
        scorer=judge,
        scored_samples=int(rates["n"].sum()) - unread,
        unscored_samples=unread,
        metrics=metrics,
    )
