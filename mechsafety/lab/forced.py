"""What a lab network reads when it is led through given answers: also one that was never trained.

An answer that is given shows in every position behind it, whether or not the network knows anything. So numbers over
the answer's positions are taken of untrained networks too, on the answers of the model that they are the control of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GPTNeoXForCausalLM

from mechsafety.lab.networks import embedding_table
from mechsafety.models.handles import attached

Place = Literal["last_prompt", "last_operand", "output"]
"""The last prompt token; the last token of the text, before it; the mean over the positions that predict the answer."""
PLACES: tuple[Place, ...] = get_args(Place)
_BATCH = 512


def last_reads(
    network: GPTNeoXForCausalLM,
    prompts: Int[Tensor, "input position"],
    answers: Sequence[Sequence[int]],
) -> dict[Place, Float[Tensor, "input d_mlp"]]:
    """What the last block's MLP output matrix reads while the network is led through ``answers``, none empty."""
    last = cast("Any", network).gpt_neox.layers[-1].mlp.dense_4h_to_h
    read: list[Tensor] = []
    found: dict[Place, list[Tensor]] = {place: [] for place in PLACES}
    start = prompts.shape[1] - 1
    with attached([last.register_forward_pre_hook(lambda _m, args: read.append(args[0]))]), torch.no_grad():
        for first in range(0, len(prompts), _BATCH):
            rows = answers[first : first + _BATCH]
            longest = max(map(len, rows))
            # Padded on the right, where no token looks.
            padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
            network(input_ids=torch.cat([prompts[first : first + _BATCH], padded[:, :-1]], dim=1))
            a = read.pop()
            lengths = torch.tensor([len(row) for row in rows])
            kept = (torch.arange(longest) < lengths[:, None])[..., None]
            found["last_prompt"].append(a[:, start])
            found["last_operand"].append(a[:, start - 1])
            found["output"].append((a[:, start:] * kept).sum(1) / lengths[:, None])
    return {place: torch.cat(parts) for place, parts in found.items()}


def first_token_norms(
    network: GPTNeoXForCausalLM, prompts: Int[Tensor, "input position"]
) -> Float[Tensor, " input"]:
    """The norm of the gradient of the largest logit behind each prompt, with respect to the prompt's embeddings."""
    norms = []
    for first in range(0, len(prompts), _BATCH):
        embedded = embedding_table(network)[prompts[first : first + _BATCH]].detach().requires_grad_(True)
        logits = network(inputs_embeds=embedded).logits[:, -1]
        (gradient,) = torch.autograd.grad(logits.max(-1).values.sum(), embedded)
        norms.append(gradient.flatten(1).norm(dim=-1))
    return torch.cat(norms)
