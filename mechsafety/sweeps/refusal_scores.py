"""The refusal score of a prompt, the tokens it is about, and the divergence between next-token distributions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsafety.core.arguments import several, whole_number
from mechsafety.core.errors import MechsafetyError, way
from mechsafety.models.chat import own_tokenizer, tokenize_answer

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_EPSILON = 1e-8
_KL_EPSILON = 1e-6
LEAST_REFUSALS = 3
"""With fewer of a model's own refusals there is too little to go by."""


@dataclass(frozen=True, kw_only=True)
class RefusalTokens:
    """The first tokens with which a model starts refusals: a set, so that each id stands in it once.

    A token that is given more than once has its weights added up and its texts joined by " / ".
    ``weight`` is how sure each is: its share among the model's own refusals (``source`` "own refusals"), or
    how much likelier it is after harmful than after harmless prompts ("logits"); NaN when named by the user.
    """

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    weight: tuple[float, ...]
    source: Literal["own refusals", "logits", "user"]

    def __post_init__(self) -> None:
        if not self.ids:
            raise MechsafetyError(
                f"no refusal tokens: name them, e.g. {way('--refusal-tokens I,Sorry', 'refusal_tokens=...')}"
            )
        texts: dict[int, list[str]] = {}
        weight: dict[int, float] = {}
        for token, text, share in zip(self.ids, self.texts, self.weight, strict=True):
            texts.setdefault(token, []).append(text)
            weight[token] = weight.get(token, 0.0) + share
        object.__setattr__(self, "ids", tuple(texts))
        object.__setattr__(self, "texts", tuple(" / ".join(dict.fromkeys(same)) for same in texts.values()))
        object.__setattr__(self, "weight", tuple(weight.values()))


@dataclass(frozen=True, kw_only=True)
class OwnRefusals:
    """What a model's answers to harmful prompts show of its refusals: ids of the prompts, and how the answers begin.

    ``asked`` are all prompts whose answers were read; ``openings`` the first tokens of the answers to the ``refused``.
    """

    asked: tuple[str, ...]
    refused: tuple[str, ...]
    openings: tuple[tuple[int, ...], ...]


def refusal_scores(logits: Float[Tensor, "row vocabulary"], tokens: Sequence[int]) -> Float[Tensor, " row"]:
    """log P(R) - log(1 - P(R)) of the set R of refusal tokens, in float64 with epsilon 1e-8."""
    return log_odds(token_probabilities(logits, sorted(set(tokens))))


def token_probabilities(
    logits: Float[Tensor, "row vocabulary"], tokens: Sequence[int]
) -> Float[Tensor, "row token"]:
    """P of each of ``tokens``, in float64."""
    return torch.softmax(logits.double(), dim=-1)[:, list(tokens)]


def log_odds(p: Float[Tensor, "*row token"]) -> Float[Tensor, "*row"]:
    """log P(R) - log(1 - P(R)) from the probabilities of the distinct tokens in R, with epsilon 1e-8."""
    total = p.sum(-1)
    return torch.log(total + _EPSILON) - torch.log(1 - total + _EPSILON)


def kl_divergence(
    base: Float[Tensor, "row vocabulary"], other: Float[Tensor, "row vocabulary"]
) -> Float[Tensor, " row"]:
    """KL(base || other) in nats, in float64 with epsilon 1e-6 inside the logarithms."""
    return DivergenceFrom(base)(torch.arange(len(base)), other)


class DivergenceFrom:
    """:func:`kl_divergence` from base logits that many others are compared with: their part is worked out once."""

    def __init__(self, base: Float[Tensor, "row vocabulary"]) -> None:
        self.p = torch.softmax(base.double(), dim=-1)
        self.own = (self.p * torch.log(self.p + _KL_EPSILON)).sum(-1)

    def __call__(
        self, rows: Int[Tensor, " other"], other: Float[Tensor, "other vocabulary"]
    ) -> Float[Tensor, " other"]:
        """KL of each base row named by ``rows`` from the logits beside it."""
        q = torch.softmax(other.double(), dim=-1)
        return self.own[rows] - (self.p[rows] * torch.log_(q.add_(_KL_EPSILON))).sum(-1)


def derive_refusal_tokens(
    harmful: Float[Tensor, "a vocabulary"],
    harmless: Float[Tensor, "b vocabulary"],
    *,
    decode: Callable[[int], str],
    least_gap: float = 0.02,
    most: int = 8,
) -> RefusalTokens:
    """First tokens that are likelier after harmful than after harmless prompts, from the model's logits.

    Those whose mean probability is higher by ``least_gap`` or more, ``most`` at the most; where none is,
    the one with the widest gap. For a model that refuses, these are the openings of its refusals.
    """
    gap = torch.softmax(harmful.double(), -1).mean(0) - torch.softmax(harmless.double(), -1).mean(0)
    widest = gap.topk(most)
    kept = max(1, int((widest.values >= least_gap).sum()))
    ids = tuple(int(i) for i in widest.indices[:kept])
    return RefusalTokens(
        ids=ids,
        texts=tuple(decode(i) for i in ids),
        weight=tuple(round(float(v), 4) for v in widest.values[:kept]),
        source="logits",
    )


def openings_of(
    refusals: Sequence[Sequence[int]], *, decode: Callable[[int], str], least_share: float = 0.1
) -> RefusalTokens | None:
    """The tokens with which at least a tenth of a model's own refusals (token ids) begin, commonest first.

    None for fewer than three refusals: too few to go by.
    """
    firsts = Counter(tokens[0] for tokens in refusals if tokens)
    total = sum(firsts.values())
    if total < LEAST_REFUSALS:
        return None
    kept = [(token, n / total) for token, n in sorted(firsts.items(), key=lambda i: (-i[1], i[0]))]
    kept = [(token, share) for token, share in kept if share >= least_share] or kept[:1]
    return RefusalTokens(
        ids=tuple(token for token, _ in kept),
        texts=tuple(decode(token) for token, _ in kept),
        weight=tuple(round(share, 4) for _, share in kept),
        source="own refusals",
    )


if TYPE_CHECKING:
    TokensLike: TypeAlias = RefusalTokens | str | int | Iterable[str | int]
else:
    TokensLike = Any
"""Refusal tokens as people name them: words, of which the first token counts, token ids, or several of either."""


def named_refusal_tokens(model: TransformerBridge, given: TokensLike) -> RefusalTokens:
    """Refusal tokens that the user names: the first token of each text, and token ids as they are.

    Raises :class:`MechsafetyError` for none, for a text without a token, and for an id that is not in the vocabulary.
    """
    if isinstance(given, RefusalTokens):
        return given
    named = several(given)
    found = [_named(model, one) for one in named]
    return RefusalTokens(
        ids=tuple(token for token, _ in found),
        texts=tuple(text for _, text in found),
        weight=tuple(float("nan") for _ in found),
        source="user",
    )


def _named(model: TransformerBridge, one: Any) -> tuple[int, str]:
    if isinstance(one, str):
        ids = tokenize_answer(model, one)
        if not ids:
            raise MechsafetyError(f"refusal token {one!r}: it must hold at least one token")
        return ids[0], one
    token, size = whole_number(one, "a refusal token"), int(model.cfg.d_vocab)
    if not 0 <= token < size:
        raise MechsafetyError(f"refusal token {token}: this model has the token ids 0 to {size - 1}")
    return token, str(own_tokenizer(model).decode([token]))
