"""What a run of ``mechsafety ladder`` does."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from mechsafety.core.names import FitOn
from mechsafety.experiments.config import ModelConfig, Option, SplitPrompts

Kind = Literal["unedited", "refusal", "random"]
"""The system as it is, without directions of its refusal subspace, and without as many random ones."""
KINDS: tuple[Kind, ...] = get_args(Kind)

Against = Literal["unedited", "random"]
"""What a system without refusal directions is compared with."""
AGAINST: tuple[Against, ...] = get_args(Against)


class LadderConfig(ModelConfig):
    """What one run does; a part of its manifest.

    Example:
        >>> ms.anatomy.LadderConfig(systems=("smollm2-135m+refusals", "smollm2-135m+dpo")).counts
        (1, 2, 4, 8)
    """

    systems: Annotated[tuple[str, ...], Option(argument=True, metavar="SYSTEM SYSTEM...")] = ()
    base: Annotated[str | None, Option(metavar="MODEL")] = Field(
        default=None, description="what all were fine-tuned from: links to dW"
    )
    prompts: SplitPrompts = "default"
    judge: str = Field(default="rules", description="who reads the answers")
    counts: Annotated[tuple[int, ...], Option(metavar="N,N,...", many="commas")] = Field(
        default=(1, 2, 4, 8), description="how many directions are removed"
    )
    fit_on: FitOn = Field(
        default="behaviour",
        description="fit prompts that the system treats as their label says (behaviour), or all (labels)",
    )
    controls: int = Field(
        default=3, ge=0, le=200, description="draws of as many random directions of like energy; 0: none"
    )
    limit: int | None = Field(
        default=None,
        ge=2,
        description="at most N report prompts of each label, and N harmful validation prompts to choose a layer by",
    )
    max_new_tokens: int = Field(default=32, ge=1, description="length of the answers that are judged")
    compare_limit: int = Field(
        default=32, ge=0, description="prompts of each label that systems are compared on; 0: they are not"
    )
    beside: Annotated[tuple[str, ...], Option(metavar="RUN")] = Field(
        default=(), description="another finished ladder that the same report shows"
    )
    regions: Annotated[str | None, Option(metavar="RUN")] = Field(
        default=None, description="a regions run of one of the systems"
    )

    @model_validator(mode="after")
    def _check(self) -> LadderConfig:
        if not self.systems:
            raise ValueError("no system: a ladder needs one or more, e.g. smollm2-135m+refusals")
        if twice := [s for i, s in enumerate(self.systems) if s in self.systems[:i]]:
            raise ValueError(f"system {twice[0]!r} is named twice: name every system once")
        shown = ",".join(map(str, self.counts)) or "(none)"
        if 0 < self.compare_limit < 4:
            raise ValueError(f"compare_limit {self.compare_limit}: 4 or more, or 0 for no comparison")
        if not self.counts or min(self.counts) < 1:
            raise ValueError(f"counts {shown}: numbers of directions to remove, each 1 or more")
        if any(b <= a for a, b in zip(self.counts, self.counts[1:], strict=False)):
            raise ValueError(f"counts {shown}: each once, in ascending order")
        if len(set(self.beside)) < len(self.beside):
            raise ValueError(f"beside {', '.join(self.beside)}: each run once")
        return self
