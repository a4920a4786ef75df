"""What a run of ``mechsafety ladder`` does, and the names and columns of its tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from pydantic import Field, model_validator

from mechsafety.anatomy.links import LINK_COLUMNS
from mechsafety.anatomy.readings import OUTCOME_COLUMNS
from mechsafety.experiments.config import ModelConfig

Kind = Literal["unedited", "refusal", "random"]
"""The system as it is, without directions of its refusal subspace, and without as many random ones."""
KINDS: tuple[Kind, ...] = get_args(Kind)

Against = Literal["unedited", "random"]
"""What a system without refusal directions is compared with."""
AGAINST: tuple[Against, ...] = get_args(Against)

TABLES: Mapping[str, str] = {
    "survival": "survival.csv",
    "verdicts": "verdicts.parquet",
    "tests": "tests.csv",
    "breaking": "breaking.csv",
    "ranks": "ranks.csv",
    "links": "links.csv",
}
"""The tables of a run, by name, and their files; ``links`` only with a base or a regions run."""
COMPARE = "compare"
"""The folder, within the run's, of the comparison of all systems."""

STATE_COLUMNS = ("system", "kind", "directions")
SURVIVAL_COLUMNS = (*STATE_COLUMNS, "label", *OUTCOME_COLUMNS, "kl", "perplexity")
VERDICT_COLUMNS = (*STATE_COLUMNS, "id", "label", "verdict")
TEST_COLUMNS = (
    *("system", "directions", "against", "n", "lost", "gained"),
    *("drop", "low", "high", "p", "p_holm"),
)
BREAKING_COLUMNS = ("system", "refused", "directions", "complied", "degenerate")
RANK_COLUMNS = ("system", "layer", "index", "auroc", "auroc_low", "auroc_high", "auroc_chance")
SYSTEM_LINK_COLUMNS = ("system", *LINK_COLUMNS)


class LadderConfig(ModelConfig):
    """What one run does; a part of its manifest.

    ``counts`` are the numbers of directions that are removed. ``limit`` takes at most so many report prompts of each
    label, and so many harmful validation prompts to choose a layer by; ``compare_limit`` so many prompts of each label
    for the comparison of systems. ``beside`` are folders of other finished ladders that the report tells as well.
    """

    systems: tuple[str, ...]
    base: str | None = None
    prompts: str = "default"
    judge: str = "rules"
    counts: tuple[int, ...] = (1, 2, 4, 8)
    limit: int | None = Field(default=None, ge=2)
    max_new_tokens: int = Field(default=32, ge=1)
    compare_limit: int = Field(default=32, ge=4)
    beside: tuple[str, ...] = ()
    regions: str | None = None

    @model_validator(mode="after")
    def _check(self) -> LadderConfig:
        if not self.systems:
            raise ValueError("no system: a ladder needs one or more, e.g. smollm2-135m+refusals")
        if twice := [s for i, s in enumerate(self.systems) if s in self.systems[:i]]:
            raise ValueError(f"system {twice[0]!r} is named twice: name every system once")
        if not self.counts or min(self.counts) < 1:
            raise ValueError(f"counts {_shown(self.counts)}: numbers of directions to remove, each 1 or more")
        if any(b <= a for a, b in zip(self.counts, self.counts[1:], strict=False)):
            raise ValueError(f"counts {_shown(self.counts)}: each once, in ascending order")
        if len(set(self.beside)) < len(self.beside):
            raise ValueError(f"beside {', '.join(self.beside)}: each run once")
        return self


def _shown(counts: tuple[int, ...]) -> str:
    return ",".join(map(str, counts)) or "(none)"
