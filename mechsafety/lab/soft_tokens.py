"""The attack with adversarial soft tokens: continuous embeddings before the tasks that make a model answer.

After Jain et al., NeurIPS 2024, arXiv 2407.10264: two tokens per input, ten gradient steps, in a ball whose radius is
the mean norm of the model's embeddings. The control is the start of the search: random tokens of that norm.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from transformers import GPTNeoXForCausalLM

from mechsafety.lab.inputs import Inputs
from mechsafety.lab.networks import embedding_table
from mechsafety.lab.outcomes import with_soft_tokens
from mechsafety.lab.vocabulary import Vocabulary

N_TOKENS = 2
STEPS = 10


def random_soft_tokens(model: GPTNeoXForCausalLM, n: int, *, seed: int) -> Float[Tensor, "n soft d_model"]:
    """Random directions whose norm is the mean norm of the model's embeddings."""
    table = embedding_table(model)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(n, N_TOKENS, table.shape[1], generator=generator, dtype=torch.float32).to(table)
    return functional.normalize(drawn, dim=-1) * table.norm(dim=-1).mean()


def search_soft_tokens(
    model: GPTNeoXForCausalLM, vocabulary: Vocabulary, inputs: Inputs, *, seed: int, steps: int = STEPS
) -> Float[Tensor, "input soft d_model"]:
    """Soft tokens that make the answers of the operators likelier, one pair an input.

    Each step goes half the radius against the normalised gradient of the answer's cross-entropy, and then back into
    the ball.
    """
    prompts = vocabulary.prompts(inputs).to(model.device)
    answers = vocabulary.answers(inputs).to(model.device)
    embedded_answers = embedding_table(model)[answers]
    soft = random_soft_tokens(model, len(inputs), seed=seed)
    radius = soft[0, 0].norm()
    for _ in range(steps):
        soft = soft.detach().requires_grad_(True)
        whole = torch.cat([with_soft_tokens(model, prompts, soft), embedded_answers], dim=1)
        logits = model(inputs_embeds=whole, use_cache=False).logits[:, -answers.shape[1] - 1 : -1]
        loss = functional.cross_entropy(logits.transpose(1, 2), answers, reduction="none").mean(1).sum()
        (gradient,) = torch.autograd.grad(loss, soft)
        step = functional.normalize(gradient.flatten(1), dim=1).view_as(gradient)
        moved = soft.detach() - 0.5 * radius * step
        norm = moved.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        soft = moved * (radius / norm).clamp_max(1.0)
    return soft.detach()
