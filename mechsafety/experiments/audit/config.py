"""What one run of ``mechsafety audit`` does."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mechsafety.experiments.config import Config, Option


class AuditConfig(Config):
    """The files of an audit and how its comparisons are corrected."""

    files: Annotated[tuple[str, ...], Option(argument=True)] = ()
    published: bool = Field(default=False, description="the counts of arXiv 2510.02768, as without FILES")
    alpha: float = Field(default=0.05, description="error rate of the verdicts")
    family: Literal["judge", "all"] = Field(
        default="judge",
        description="correct over the systems under one judge and label, or over all comparisons",
    )
    seed: int = Field(default=0, description="for the bootstrap of kappa")
