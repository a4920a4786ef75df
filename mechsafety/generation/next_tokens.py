"""What a model would say next: logits and log-probabilities behind prompts, under an edit or none."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.sums import EditLike, as_edit
from mechsafety.generation.bodies import body_under
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.models.prefixes import all_last_logits
from mechsafety.prompts.accepted import PromptsLike, as_prompts
from mechsafety.prompts.fed import fitting


def logits(
    model: ModelLike,
    prompts: PromptsLike,
    *,
    position: int = -1,
    edit: EditLike | None = None,
    batch_size: int = 64,
) -> Float[Tensor, "prompt vocabulary"]:
    """Next-token logits at ``position`` of each prompt in its chat template, in float32 on the CPU.

    ``position`` is an offset from the end of the rendered prompt: -1 is its last token, behind which the answer begins.
    Positions to the right of it are not run, since no token sees those that follow.

    Raises :class:`MechsafetyError` for no prompts, a position that a prompt does not have, and prompts longer than the
    model's window.

    Returns:
        Logits [prompt, vocabulary], float32, on the CPU.

    Example:
        >>> ms.logits(model, prompts.report).shape == (len(prompts.report), model.cfg.d_vocab)
        True
    """
    model = as_model(model)
    prompts = as_prompts(prompts)
    edit = None if edit is None else as_edit(edit, model)
    if not len(prompts):
        raise MechsafetyError("no prompts to run")
    if position >= 0:
        raise MechsafetyError(f"position {position}: offsets from the end are -1, -2, ...")
    _, sequences = fitting(model, prompts, truncate=False)
    shortest = min(map(len, sequences))
    if shortest < -position:
        raise MechsafetyError(f"position {position} lies before the shortest prompt ({shortest} tokens)")
    kept = [tokens[: len(tokens) + position + 1] for tokens in sequences]
    with body_under(model, edit) as body:
        return all_last_logits(model, body, kept, batch_size=batch_size)


def log_probs(
    model: ModelLike,
    prompts: PromptsLike,
    *,
    position: int = -1,
    edit: EditLike | None = None,
    batch_size: int = 64,
) -> Float[Tensor, "prompt vocabulary"]:
    """Next-token log-probabilities, in nats: the log-softmax of :func:`logits`, which takes the same arguments.

    Returns:
        Log-probabilities [prompt, vocabulary], float32.

    Example:
        >>> chances = ms.log_probs(model, prompts.report).exp().sum(dim=1)
        >>> torch.allclose(chances, torch.ones(len(prompts.report)), atol=1e-4)
        True
    """
    return logits(model, prompts, position=position, edit=edit, batch_size=batch_size).log_softmax(-1)
