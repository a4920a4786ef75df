"""What ``mechsafety plan-labels`` is asked."""

from __future__ import annotations

from pydantic import Field

from mechsafety.experiments.config import Config


class PlanConfig(Config):
    """What is expected of rates, judges and annotators, and how exact the results should be."""

    rate: float = Field(default=0.5, description="the refusal rate that is expected")
    width: float = Field(default=0.1, description="whole width of the 95 % interval")
    responses: int | None = Field(
        default=None, description="judged responses of the cell that is to be corrected"
    )
    sensitivity: float = Field(default=0.9, description="of the judge, roughly")
    specificity: float = Field(default=0.9, description="of the judge, roughly")
    kappa: float = Field(default=0.8, description="between annotators, roughly")
    kappa_width: float = Field(default=0.2, description="width of its interval")
    drop: float = Field(default=0.2, description="the drop in refusals to be found")
    baseline: float = Field(default=0.9, description="refusal rate before the edit")
    gained: float = Field(default=0.0, description="share of all prompts that the edit newly refuses")
    power: float = Field(default=0.8, description="probability of finding the drop")
    comparisons: int = Field(default=1, ge=1, description="tests that Bonferroni corrects for")
