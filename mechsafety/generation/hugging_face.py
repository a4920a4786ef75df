"""Answers by Hugging Face's ``generate``: shared first tokens run once, and rows that have ended are dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechsafety.core.boundary import checked_construction
from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.side_by_side import of_groups
from mechsafety.generation.roomy_keys import with_room, without_room
from mechsafety.models.chat import TokenBatch, pad_left
from mechsafety.models.finite import finite_logits
from mechsafety.models.forward import (
    Prefix,
    evaluating,
    require_paddable,
    require_same_lengths,
    run_prefix,
)
from mechsafety.models.prefixes import common_prefix, goes_on, has_strange_hooks

_TRIED = "_mechsafety_answers_in_parts"
_FIRST_PART = 16  # tokens; every further part is as long as all before it
_ENDED_PART = 64  # at most, where rows end by what they hold


@checked_construction
@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Draw tokens instead of taking the likeliest.

    Arguments:
        temperature: What logits are divided by, above 0.
        top_p: Share of the probability that is drawn from: the likeliest tokens that hold it, in (0, 1].

    Example:
        >>> drawn = ms.Sampling(temperature=0.7, top_p=0.95)
        >>> first = ms.generate(model, prompts.report, sampling=drawn, seed=1, max_new_tokens=3, progress=False)
        >>> first == ms.generate(model, prompts.report, sampling=drawn, seed=1, max_new_tokens=3, progress=False)
        True
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0 or not 0 < self.top_p <= 1:
            raise MechsafetyError(
                f"temperature {self.temperature:g} must be above 0 and top_p {self.top_p:g} in (0, 1]; "
                "for greedy decoding leave sampling out"
            )


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How a batch is answered: ``most`` tokens, up to one of ``stops``; each of ``groups`` has an edit of its own.

    ``end`` says of the tokens of a row whether it has ended before ``most``: what follows is not wanted.
    """

    most: int
    sampling: Sampling | None
    stops: frozenset[int]
    pad: int
    groups: int = 1
    end: Callable[[Sequence[int]], int | None] | None = None


def hf_answers(module: Any, batch: TokenBatch, asking: Asking) -> Int[Tensor, "row token"]:
    """The tokens of the answers; those behind a stop mean nothing."""
    require_paddable(module, batch)
    require_same_lengths(module, batch, new_tokens=asking.most)
    sampled = asking.sampling is not None
    with torch.inference_mode(), evaluating(module), finite_logits(module, at_once=sampled) as settle:
        cache, columns = _shared(module, batch, asking)
        return _in_parts(module, columns, cache, asking, settle)


def _shared(module: Any, batch: TokenBatch, asking: Asking) -> tuple[Any, TokenBatch]:
    """The keys of the tokens that all rows begin with, run once for each group, and the batch with its padding after
    these; no keys, and the batch as it is, where rows share none or the model does not allow it.
    """
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(batch.ids.cpu(), batch.mask.cpu(), strict=True)]
    device = batch.ids.device
    shared = common_prefix(module, rows, device, more=asking.most) if len(rows) > asking.groups else []
    if not shared:
        return None, batch
    before = run_prefix(module, shared, device, rows=asking.groups)
    rest = pad_left([row[len(shared) :] for row in rows], pad=asking.pad).to(device)
    first = torch.tensor([shared] * len(rows), device=device)
    columns = TokenBatch(
        rows=batch.rows,
        ids=torch.cat([first, rest.ids], dim=1),
        mask=torch.cat([torch.ones_like(first), rest.mask], dim=1),
    )
    return before.rows(_groups(len(rows), asking.groups, device)), columns


def _in_parts(
    module: Any, batch: TokenBatch, cache: Any, asking: Asking, settle: Callable[[], None]
) -> Int[Tensor, "row token"]:
    """The answers, a part at a time: before each, rows that have ended are dropped, whose steps would be in vain.

    In one part where tokens are drawn, so that each row's draws do not depend on when others end. The host waits for
    the device once for each part (and in ``generate`` itself for each token); ``settle`` raises for broken logits.
    """
    ids, mask, device = batch.ids, batch.mask, batch.ids.device
    group = _groups(len(ids), asking.groups, torch.device("cpu"))
    rows = torch.arange(len(ids))
    stops = torch.tensor(sorted(asking.stops), dtype=torch.long, device=device)
    answers = torch.full((len(ids), asking.most), asking.pad, dtype=torch.long, device=device)
    whole = asking.sampling is not None or not len(stops) or not _goes_on(module, device)
    done = 0
    while done < asking.most and len(rows):
        end = asking.most if whole else min(asking.most, _part_end(done, asking))
        with of_groups(torch.bincount(group[rows], minlength=asking.groups).tolist()):
            out = _generate(module, ids, mask, cache, end - done, asking)
        settle()
        new = out.sequences[:, ids.shape[1] :]
        answers[rows.to(device), done : done + new.shape[1]] = new
        done += new.shape[1]
        going = (~torch.isin(new, stops).any(1)).cpu().nonzero().flatten()
        if asking.end is not None and done < asking.most:
            so_far = answers[rows[going].to(device), :done].tolist()
            going = going[[asking.end(tokens) is None for tokens in so_far]]
        rows, left = rows[going], going.to(device)
        cache = out.get("past_key_values")
        if done < asking.most and 0 < len(left) < len(ids):
            cache = Prefix(n_tokens=ids.shape[1] + new.shape[1] - 1, cache=cache).rows(left)
        ids, mask = torch.cat([ids, new], dim=1)[left], torch.cat([mask, torch.ones_like(new)], dim=1)[left]
    return answers


def _part_end(done: int, asking: Asking) -> int:
    doubled = 2 * done or _FIRST_PART
    return doubled if asking.end is None else min(doubled, done + _ENDED_PART)


def _goes_on(module: Any, device: torch.device) -> bool:
    """Whether the model's cache is a list of keys, of which rows can be taken; tried once for each model."""
    if _TRIED not in module.__dict__:
        if has_strange_hooks(module):
            return False  # they would feel the trial
        module.__dict__[_TRIED] = goes_on(module, device)
    return module.__dict__[_TRIED]


def _groups(n_rows: int, groups: int, device: torch.device) -> Int[Tensor, " row"]:
    return torch.arange(groups, device=device).repeat_interleave(n_rows // groups)


def _generate(
    module: Any,
    ids: Int[Tensor, "row token"],
    mask: Int[Tensor, "row token"],
    cache: Any,
    n: int,
    asking: Asking,
) -> Any:
    from transformers import GenerationConfig

    sampling = asking.sampling
    config = GenerationConfig(
        max_new_tokens=n,
        do_sample=sampling is not None,
        temperature=sampling.temperature if sampling else None,
        top_p=sampling.top_p if sampling else None,
        top_k=0 if sampling else None,
        eos_token_id=sorted(asking.stops) or None,
        pad_token_id=asking.pad,
        return_dict_in_generate=True,
    )
    given = {"input_ids": ids, "attention_mask": mask}
    if cache is not None:
        given["past_key_values"] = with_room(cache, ids.shape[1] + n)
    with _own_config(module, config):
        out = module.generate(**given, generation_config=config)
    without_room(out.get("past_key_values"))
    return out


@contextmanager
def _own_config(module: Any, config: Any) -> Iterator[None]:
    # Hugging Face fills what our config leaves open from the model's, sampling settings included.
    theirs = module.generation_config
    module.generation_config = config
    try:
        yield
    finally:
        module.generation_config = theirs
