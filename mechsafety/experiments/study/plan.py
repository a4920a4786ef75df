"""The dry run of a study: what each system is and takes, without loading any of them and without the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.recipes import Recipe
from mechsafety.experiments.study.config import StudyConfig
from mechsafety.experiments.study.costs import (
    LAUNCH_MS,
    Estimate,
    Gpu,
    Sizes,
    Work,
    judging,
    memory,
    seconds,
    stages,
)
from mechsafety.experiments.study.endpoint_costs import asked_elsewhere
from mechsafety.experiments.study.experiment import study_prompts
from mechsafety.experiments.study.systems import recipe_of
from mechsafety.judges.batches import Expected
from mechsafety.judges.panel import members_of
from mechsafety.models.facts import ModelFacts, model_facts
from mechsafety.models.placing import USABLE, value_bytes
from mechsafety.prompts.prompt_set import PromptSet

_MODEL_JUDGES = ("logit", "text")
_CHARACTERS_A_TOKEN = 4
_TEMPLATE_TOKENS = 40
_NAME_WIDTH = 44


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One system: its facts with their estimate, or why it is ``unknown``."""

    system: str
    facts: ModelFacts | None = None
    estimate: Estimate | None = None
    unknown: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Study:
    """What the rows of one plan have in common; ``judges`` are those that are models, with their facts."""

    config: StudyConfig
    recipe: Recipe
    sizes: Sizes
    gpu: Gpu
    judges: Mapping[str, ModelFacts]

    def seconds(self, work: Work, facts: ModelFacts) -> float:
        return seconds(work, facts, self.gpu, batch=self.config.batch_size, dtype=self.config.dtype)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The rows of a study, on which GPUs, and what is said beside them."""

    rows: tuple[PlanRow, ...]
    gpu: Gpu
    dtype: str
    notes: tuple[str, ...]
    asked: tuple[Expected, ...] = ()
    """What judges behind addresses are asked, known systems or not."""

    @property
    def hours(self) -> float:
        """GPU hours of the systems that are known."""
        return float(sum(row.estimate.total for row in self.rows if row.estimate))

    @property
    def devices(self) -> int:
        """GPUs that the largest known system needs."""
        return max((row.estimate.devices for row in self.rows if row.estimate), default=0)


def plan_study(config: StudyConfig, gpu: Gpu) -> Plan:
    """What the study of ``config`` takes on GPUs like ``gpu``; systems that are not known have no estimate.

    Raises :class:`MechsafetyError` for prompts that cannot be read.
    """
    report, anchors = study_prompts(config)
    sizes = _sizes(report, anchors)
    judges, judge_notes = _judges(config)
    study = _Study(config=config, recipe=recipe_of(config), sizes=sizes, gpu=gpu, judges=judges)
    return Plan(
        rows=tuple(_row(system, study) for system in config.systems),
        gpu=gpu,
        dtype="bfloat16" if config.dtype == "auto" else config.dtype,
        notes=(*_notes(study), *judge_notes),
        asked=tuple(asked_elsewhere(config, report)),
    )


def _sizes(report: PromptSet, anchors: PromptSet) -> Sizes:
    texts = [prompt.text for prompt in (*report, *anchors)]
    characters = sum(map(len, texts)) / len(texts)
    return Sizes(
        harmful=len(report.harmful),
        harmless=len(report.harmless),
        fit=len(anchors.to_estimate),
        validation_harmful=len(anchors.to_choose.harmful),
        validation_harmless=len(anchors.to_choose.harmless),
        prompt_tokens=characters / _CHARACTERS_A_TOKEN + _TEMPLATE_TOKENS,
    )


def _judges(config: StudyConfig) -> tuple[dict[str, ModelFacts], list[str]]:
    """The judges that are models by their names, and a line for each that is not known."""
    found: dict[str, ModelFacts] = {}
    notes: list[str] = []
    for judge in dict.fromkeys(one for several in config.judges for one in members_of(several)):
        kind, _, argument = judge.partition(":")
        if kind not in _MODEL_JUDGES:
            continue
        try:
            found[judge] = model_facts(argument)
        except MechsafetyError as error:
            notes.append(f"judge {judge}: not in the estimate: {error}")
    return found, notes


def _row(system: str, study: _Study) -> PlanRow:
    try:
        facts = model_facts(system)
    except MechsafetyError as error:
        return PlanRow(system=system, unknown=str(error))
    if (given := study.config.template) is not None:
        facts = replace(facts, template=f"--template {given}")
    if study.config.chat.thinking == "model":
        facts = replace(facts, thinking="left to the model")
    return PlanRow(system=system, facts=facts, estimate=_estimate(system, facts, study))


def _estimate(system: str, facts: ModelFacts, study: _Study) -> Estimate:
    config, sizes = study.config, study.sizes
    beside = {judge.partition(":")[2]: f for judge, f in study.judges.items()}
    kept = sum(f.n_parameters for name, f in beside.items() if name != system) * value_bytes(config.dtype)
    need = memory(facts, sizes, config, dtype=config.dtype, judges=kept)
    devices = need.devices(study.gpu)
    work = stages(config, study.recipe, sizes, n_layers=facts.n_layers)
    took = {stage: study.seconds(one, facts) for stage, one in work.items()}
    took["judges"] = sum(
        study.seconds(
            judging(judge.partition(":")[0], config, sizes, primary=judge == config.primary_judge), f
        )
        for judge, f in study.judges.items()
    )
    hours = {stage: devices * value / 3600 for stage, value in took.items()}
    return Estimate(memory=need, devices=devices, hours=hours)


def _notes(study: _Study) -> list[str]:
    config, sizes, gpu = study.config, study.sizes, study.gpu
    return [
        f"recipe {study.recipe.name}; {sizes.harmful} + {sizes.harmless} report prompts of about "
        f"{sizes.prompt_tokens:.0f} tokens (estimate), each answered with all {config.max_new_tokens} new tokens, "
        f"{config.batch_size} at once; {config.controls} random directions",
        f"GPUs: {gpu.memory_gb:g} GB ({USABLE:.0%} usable), {gpu.tflops:g} TFLOP/s, {gpu.bandwidth_tb:g} TB/s, at "
        f"{gpu.share:g} of peak, a token no sooner than in {LAUNCH_MS} ms a block (assumed); hours count every GPU "
        "that holds a part of the model, and parts take turns",
        "memory is that of weights, of keys and values of one batch, and of judges that stay loaded",
    ]


# -- what is printed ------------------------------------------------------------------------------------


def plan_text(plan: Plan) -> str:
    """Two tables, one row for each system in both, and the totals."""
    import pandas as pd

    known = [(number, row) for number, row in enumerate(plan.rows, start=1) if row.facts and row.estimate]
    lines = ["Dry run: nothing was loaded. GB, GPUs and GPU hours are estimates.", ""]
    if known:
        lines += [_frame(pd.DataFrame([_what(number, row, plan.dtype) for number, row in known])), ""]
        hours = pd.DataFrame([_hours(number, row) for number, row in known])
        lines += ["GPU hours by stage (estimate)", _frame(hours), ""]
        devices = f"{plan.devices} GPU{'s' if plan.devices > 1 else ''} of {plan.gpu.memory_gb:g} GB"
        lines += [
            f"In all {plan.hours:.1f} GPU hours (estimate); the largest system needs {devices} (estimate)."
        ]
    lines += [f"unknown: {row.system}: {row.unknown}" for row in plan.rows if row.unknown]
    lines += _asked_lines(plan.asked)
    sources = dict.fromkeys(row.facts.source for _, row in known if row.facts)
    return "\n".join([*lines, *plan.notes, *(f"facts: {source}" for source in sources)])


def _asked_lines(asked: Sequence[Expected]) -> list[str]:
    """What judges behind addresses are asked, each in a line, and what all of them cost."""
    lines = [f"judge {one} (estimate; no GPU hours here)" for one in asked]
    costs = [one.cost for one in asked if one.cost is not None]
    if len(costs) > 1:
        lines.append(f"In all a cost of {sum(costs):.4f} (estimate) for the judges that have prices.")
    if len(costs) < len(asked):
        lines.append("cost: give prices per million tokens in a judge, ;price_in=X;price_out=Y")
    return lines


def _frame(table: Any) -> str:
    return table.to_string(index=False, float_format=_spelt)


def _spelt(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def _short(system: str, number: int) -> str:
    name = system.rstrip("/").rpartition("/")[2]
    kept = (_NAME_WIDTH - 1) // 2
    return f"{number} " + (name if len(name) <= _NAME_WIDTH else f"{name[:kept]}…{name[-kept:]}")


def _what(number: int, row: PlanRow, dtype: str) -> dict[str, Any]:
    facts, estimate = row.facts, row.estimate
    assert facts is not None
    assert estimate is not None
    gated = {True: "yes", False: "no", None: "not known"}[facts.gated]
    return {
        "system": _short(row.system, number),
        "architecture": facts.architecture,
        "parameters": f"{facts.n_parameters / 1e9:.3g}B",
        "dtype": dtype,
        "weights GB": estimate.memory.weights / 1e9,
        "cache GB": estimate.memory.cache / 1e9,
        "judges GB": estimate.memory.judges / 1e9,
        "GPUs": estimate.devices,
        "template": facts.template,
        "thinking": facts.thinking,
        "gated": gated,
        "facts": facts.source.partition(":")[0],
    }


def _hours(number: int, row: PlanRow) -> dict[str, Any]:
    assert row.estimate is not None
    return {"system": _short(row.system, number), **row.estimate.hours, "total": row.estimate.total}


def plan_facts(plan: Plan) -> dict[str, Any]:
    """The same for ``--json``; what is estimated stands under keys that say so."""
    return {
        "dry_run": True,
        "systems": [_row_facts(row, plan.dtype) for row in plan.rows],
        "unknown": {row.system: row.unknown for row in plan.rows if row.unknown},
        "gpu": asdict(plan.gpu),
        "estimated_gpu_hours": plan.hours,
        "estimated_gpus": plan.devices,
        "endpoint_judges": [asdict(one) for one in plan.asked],
        "notes": list(plan.notes),
    }


def _row_facts(row: PlanRow, dtype: str) -> dict[str, Any]:
    if row.facts is None or row.estimate is None:
        return {"system": row.system, "unknown": row.unknown}
    return {
        "system": row.system,
        **asdict(row.facts),
        "dtype": dtype,
        "estimate": {
            "bytes": asdict(row.estimate.memory),
            "gpus": row.estimate.devices,
            "gpu_hours": {**row.estimate.hours, "total": row.estimate.total},
        },
    }
