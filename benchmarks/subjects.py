"""What is measured on: a model with its candidates, and validation prompts that it treats as labelled."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.progress import quiet
from mechsafety.directions.activations import residual_stream
from mechsafety.directions.direction import Directions, find_directions
from mechsafety.models.chat import post_instruction_positions, tokenize_prompts
from mechsafety.models.gguf import converted, packaged_gguf
from mechsafety.models.hooking import plain_twin_at
from mechsafety.models.loading import body_of, load_model
from mechsafety.models.prefixes import all_last_logits
from mechsafety.prompts.prompt_set import Prompt, PromptSet, load_prompts
from mechsafety.sweeps.refusal_scores import RefusalTokens, derive_refusal_tokens, refusal_scores

_MARGIN = 0.5  # in score: no rounding turns a prompt over, so that every loop keeps the same ones


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model, its candidate directions, and the prompts and refusal tokens they are scored with."""

    model: Any
    directions: Directions
    prompts: PromptSet
    tokens: RefusalTokens

    def first(self, per_label: int) -> PromptSet:
        """The first prompts of each label."""
        return PromptSet((*self.prompts.harmful[:per_label], *self.prompts.harmless[:per_label]))

    def at_last_position(self) -> Directions:
        """The candidates of the last prompt token alone."""
        return candidates(self.model, positions=(-1,))


def candidates(model: Any, *, positions: Sequence[int] | None = None) -> Directions:
    """Mean differences of 32 + 32 fit prompts, at every post-instruction position unless given."""
    where = post_instruction_positions(model) if positions is None else positions
    cache = residual_stream(model, load_prompts("default").fit.sample(32, seed=0), positions=where)
    return find_directions(cache, seed=0, resamples=1)


def tuned_subject(model: Any, pool: PromptSet, *, per_label: int) -> Subject:
    """``per_label`` prompts of each label, of a sample of ``pool``, that the unedited model treats as labelled."""
    pool = pool.sample(2 * per_label + 8, seed=0)  # about a third are not
    harmful, harmless = _logits(model, pool.harmful), _logits(model, pool.harmless)
    tokens = derive_refusal_tokens(harmful, harmless, decode=lambda i: str(model.tokenizer.decode([i])))
    refused = _those(pool.harmful, refusal_scores(harmful, tokens.ids) > _MARGIN, per_label)
    answered = _those(pool.harmless, refusal_scores(harmless, tokens.ids) < -_MARGIN, per_label)
    return Subject(
        model=model, directions=candidates(model), prompts=PromptSet((*refused, *answered)), tokens=tokens
    )


def random_subject(model: Any, *, per_label: int) -> Subject:
    """For random weights, which refuse nothing: every prompt stays, because too few are as labelled."""
    tokens = RefusalTokens(ids=(1000,), texts=("any",), weight=(float("nan"),), source="user")
    prompts = load_prompts("default").validation
    kept = PromptSet((*prompts.harmful[:per_label], *prompts.harmless[:per_label]))
    return Subject(model=model, directions=candidates(model), prompts=kept, tokens=tokens)


def _logits(model: Any, prompts: PromptSet) -> Float[Tensor, "prompt vocabulary"]:
    body = plain_twin_at(model) or body_of(model)
    return all_last_logits(model, body, tokenize_prompts(model, [p.text for p in prompts]), batch_size=64)


def _those(prompts: Sequence[Prompt], agrees: Tensor, most: int) -> list[Prompt]:
    kept = [p for p, ok in zip(prompts, agrees.tolist(), strict=True) if ok][:most]
    if len(kept) < most:
        raise SystemExit(f"only {len(kept)} of the {most} prompts wanted are treated as labelled")
    return kept


@contextmanager
def random_llama(*, dtype: str, device: str, **shape: Any) -> Iterator[Any]:
    """A Llama of random weights with the packaged tokenizer; ``shape`` overrides the packaged configuration.

    Written to a temporary folder and read from there, because that is how :func:`load_model` gives a model
    its plain twin; the folder goes when the block ends.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from mechsafety.models.hardware import resolve_dtype

    folder = str(converted(packaged_gguf()))
    config = AutoConfig.from_pretrained(folder)
    for name, value in shape.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    where = torch.device(device)
    with tempfile.TemporaryDirectory() as scratch, quiet():
        with where:
            made = AutoModelForCausalLM.from_config(config, dtype=resolve_dtype(dtype, where))
        made.save_pretrained(scratch)
        AutoTokenizer.from_pretrained(folder).save_pretrained(scratch)
        del made
        if where.type == "cuda":
            torch.cuda.empty_cache()
        model = load_model(str(Path(scratch)), dtype=dtype, device=device)
        yield model
