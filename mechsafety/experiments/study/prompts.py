"""The prompts of a study: report prompts, and the anchors that find and select directions."""

from __future__ import annotations

from dataclasses import replace

from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.study.config import StudyConfig
from mechsafety.prompts.prompt_set import PromptSet, load_prompts
from mechsafety.prompts.splits import require_disjoint


def study_prompts(config: StudyConfig) -> tuple[PromptSet, PromptSet]:
    """Report prompts and anchors (fit and validation), sampled as the configuration says.

    Raises :class:`MechsafetyError` when a split or a label is missing, or when they overlap.
    """
    asked = load_prompts(config.prompts)
    report = asked.to_judge
    anchors = load_prompts(config.anchors)
    chosen = PromptSet(
        (
            *anchors.to_estimate.sample(config.fit, seed=config.seed),
            *anchors.to_choose.sample(config.validation, seed=config.seed),
        ),
        anchors.name,
        anchors.repeated if config.anchors != config.prompts else 0,
    )
    for split in (chosen.to_estimate, chosen.to_choose):
        if not len(split.harmful) or not len(split.harmless):
            raise MechsafetyError(
                f"anchors {config.anchors!r} need harmful and harmless prompts in the splits fit and validation"
            )
    if not len(report):
        raise MechsafetyError(f"prompts {config.prompts!r} hold no report split")
    if config.limit is not None:
        report = report.sample(config.limit, seed=config.seed)
    require_disjoint(anchor=chosen, report=report)
    return replace(report, repeated=asked.repeated), chosen
