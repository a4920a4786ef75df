"""What one run of ``mechsafety compare`` does."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mechsafety.core.errors import MechsafetyError, way
from mechsafety.core.names import THOUGHT_END
from mechsafety.experiments.config import ModelConfig, Option


def _position(text: str) -> int | str:
    if text == THOUGHT_END:
        return text
    try:
        return int(text)
    except ValueError:
        raise MechsafetyError(
            f"{way('--position', 'position')} {text!r}: an offset from the end (-1), or {THOUGHT_END}"
        ) from None


class ComparisonConfig(ModelConfig):
    """The checkpoints of a comparison, and how they are compared.

    Measures, layer, limit and the prompts' name are no part of the manifest: a run is bound to the prompts themselves,
    and may be asked for other measures, or shown at another layer, in the same folder.
    """

    checkpoints: Annotated[tuple[str, ...], Option(argument=True, metavar="MODEL MODEL...")]
    prompts: Annotated[str, Option(metavar="SET")] = Field(
        default="default", exclude=True, description="fit, validation and report prompts"
    )
    measures: Annotated[tuple[str, ...] | None, Option(name="--measure", default="all that can be had")] = (
        Field(default=None, exclude=True, description="cosine, angles, cka or transfer")
    )
    layer: Annotated[
        int | None, Option(metavar="L", default="the one that separates held-out prompts best")
    ] = Field(default=None, exclude=True, description="ablate and show this layer")
    limit: int | None = Field(default=None, exclude=True, description="at most N prompts of each label")
    k: int = Field(default=3, description="dimensions of the refusal subspace")
    resamples: int = Field(default=300, description="of the bootstrap over prompts")
    position: Annotated[int | Literal["thought-end"], Option(metavar="N|thought-end", parse=_position)] = (
        Field(default=-1, description="offset from the prompt's end, or the end of each model's own thought")
    )
