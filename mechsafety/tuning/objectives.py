"""The objectives of safety fine-tuning, the same for the lab's models and for real ones.

SFT is the cross-entropy of the preferred answer (:func:`answer_loss`). DPO is Rafailov et al., NeurIPS 2023,
arXiv 2305.18290, equation 7. Unlearning is the loss of Jain et al., NeurIPS 2024, arXiv 2407.10264: cross-entropy of
the preferred answer less a small share of that of the dispreferred one.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from mechsafety.generation.answers import AnswerBatch

Objective = Literal["sft", "dpo", "unlearn"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


def answer_log_likelihoods(
    logits: Float[Tensor, "answer_token vocabulary"], batch: AnswerBatch
) -> Float[Tensor, " row"]:
    """log p(answer | prompt) of each row, in nats: the sum over the tokens whose weight is above 0.

    ``logits`` come from :func:`answer_logits`; the weights themselves are not used.
    """
    kept = batch.weights[:, 1:] > 0
    log_p = -functional.cross_entropy(logits.float(), batch.labels[:, 1:][kept], reduction="none")
    row = kept.nonzero()[:, 0]
    return torch.zeros(len(kept), device=log_p.device, dtype=torch.float32).index_add(0, row, log_p)


def dpo_loss(
    *,
    preferred: Float[Tensor, " row"],
    dispreferred: Float[Tensor, " row"],
    reference_preferred: Float[Tensor, " row"],
    reference_dispreferred: Float[Tensor, " row"],
    beta: float,
) -> Float[Tensor, ""]:
    """Mean of -log sigmoid(beta (gain of the preferred answer - gain of the dispreferred one)).

    A gain is log p under the model that is tuned less log p under the untouched reference, in nats.
    """
    margin = (preferred - reference_preferred) - (dispreferred - reference_dispreferred)
    return -functional.logsigmoid(beta * margin).mean()


def unlearning_loss(
    preferred: Float[Tensor, ""], dispreferred: Float[Tensor, ""], *, weight: float
) -> Float[Tensor, ""]:
    """Cross-entropy of the preferred answers less ``weight`` times that of the dispreferred ones, in nats per token.

    It has no lower bound: the dispreferred answers can become ever less likely. ``weight`` is .1 in the paper.
    """
    return preferred - weight * dispreferred
