"""Whether token sequences fit in the window of a model, with the tokens that are still to come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mechsafety.core.errors import MechsafetyError
from mechsafety.models.loading import window

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

MORE_ROOM = "take a model that reads more"


def rows_that_fit(
    model: TransformerBridge, sequences: Sequence[Sequence[int]], *, new_tokens: int = 0
) -> list[int]:
    """The rows of ``sequences`` that fit in the model's window with ``new_tokens`` more."""
    most = window(model)
    return [row for row, tokens in enumerate(sequences) if most is None or len(tokens) + new_tokens <= most]


def require_room(
    model: TransformerBridge,
    sequences: Sequence[Sequence[int]],
    ids: Sequence[str],
    *,
    new_tokens: int,
    mend: str = MORE_ROOM,
) -> None:
    """Raise :class:`MechsafetyError` where a sequence and ``new_tokens`` more do not fit in the model's window.

    ``mend`` names what else can be done than to leave them out.
    """
    fits = set(rows_that_fit(model, sequences, new_tokens=new_tokens))
    if long := [row for row in range(len(sequences)) if row not in fits]:
        more = f" and {new_tokens} new tokens" if new_tokens else ""
        first, n_tokens = ids[long[0]], len(sequences[long[0]])
        raise MechsafetyError(
            f"{len(long)} of {len(sequences)} prompts do not fit in the model's window of {window(model)} tokens: the "
            f"first is {first!r}, {n_tokens} tokens as the model reads it{more}. Leave them out, ask for fewer tokens, "
            f"or {mend}"
        )
