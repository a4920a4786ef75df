"""The end of the model's own thought as a position: where a model that thinks turns to its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mechsafety.core.errors import MechsafetyError, way
from mechsafety.core.names import THOUGHT_END
from mechsafety.generation.answered import Completion
from mechsafety.generation.completions import DEFAULT_BATCH, generate
from mechsafety.models.chat import post_instruction_positions, tokenize_prompts
from mechsafety.models.chat_settings import LEFT_THINKING, chat_of
from mechsafety.models.thought_reading import thought_budget
from mechsafety.prompts.prompt_set import Prompt

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_ANSWER = 4  # tokens: blank lines behind a thought are among the first


def offsets_of(model: TransformerBridge, positions: Sequence[int] | str) -> tuple[int, ...]:
    """Positions as offsets from the end: ``post`` is every token of the template behind the request, ``last`` the last
    one, and so is ``thought-end`` where prompts are read with :func:`own_thoughts` behind them."""
    if not isinstance(positions, str):
        return tuple(map(int, positions))
    return post_instruction_positions(model) if positions == "post" else (-1,)


def own_thoughts(
    model: TransformerBridge, prompts: Sequence[Prompt], *, batch_size: int = DEFAULT_BATCH
) -> dict[tuple[int, ...], tuple[int, ...]]:
    """The tokens of the model's own greedy thought about each prompt, by its tokens, up to where the answer begins.

    With them behind the prompts (:func:`mechsafety.models.chat.after_thoughts`) the last prompt position is the end of
    the thought. Raises :class:`MechsafetyError` for a model that does not think or is kept from it, and where a prompt
    is answered without a thought, or the thought about one does not end.
    """
    if not thought_budget(model):
        kept = chat_of(model).thinking == "off"
        raise MechsafetyError(
            f"the position {THOUGHT_END!r} is where a model's own thought ends: "
            + (
                f"the model is kept from thinking; give {way('--thinking model', LEFT_THINKING)}"
                if kept
                else "neither chat template nor vocabulary know of thoughts; take the last prompt token (last)"
            )
        )
    done = generate(model, prompts, max_new_tokens=_ANSWER, seed=0, batch_size=batch_size, label="thoughts")
    _require(
        [c for c in done if c.n_thought_tokens == c.n_tokens],
        len(done),
        f"have a thought that does not end in {thought_budget(model)} tokens",
        f"raise max_thought_tokens ({way('--max-thought-tokens', 'in chat')}), or leave them out",
    )
    _require(
        [c for c in done if not c.n_thought_tokens],
        len(done),
        "are answered without a thought",
        "leave them out",
    )
    asked = map(tuple, tokenize_prompts(model, [c.asked for c in done]))
    return {ids: c.tokens[: c.n_thought_tokens] for ids, c in zip(asked, done, strict=True)}


def _require(wrong: Sequence[Completion], n: int, what: str, mend: str) -> None:
    if wrong:
        raise MechsafetyError(
            f"{len(wrong)} of {n} prompts {what}, so that they have no position {THOUGHT_END!r}: the first is "
            f"{wrong[0].id!r}. {mend[0].upper()}{mend[1:]}"
        )
