"""Rotary position embeddings whose frequencies depend on how long the longest sequence of a pass is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mechsafety.core.errors import MechsafetyError


def require_own_length(body: Any, ends: list[int], *, starts: list[int], new_tokens: int = 0) -> None:
    """Raise where a sequence would be read with the frequencies of another's length.

    ``ends`` are the real tokens of each row behind the pass, ``starts`` those that each had in its cache, and
    ``new_tokens`` follow. Frequencies change where a sequence passes a limit of the model's configuration (longrope),
    or with every length beyond it (dynamic).
    """
    for kind, limit in _limits(body):
        if max(ends) + new_tokens <= limit:
            continue
        if any(start and (kind == "dynamic" or start <= limit) for start in starts):
            raise MechsafetyError(
                f"{_named(body)} reads sequences of more than {limit} tokens with other frequencies ({kind} rotary "
                f"embeddings), so that one cannot go on beyond that from stored keys: leave out what is longer"
            )
        if len(set(ends)) > 1 and (kind == "dynamic" or min(ends) <= limit):
            raise MechsafetyError(
                f"{_named(body)} reads sequences of more than {limit} tokens with other frequencies ({kind} rotary "
                "embeddings), so that shorter ones cannot share a batch with them: use a batch size of 1"
            )


def length_matters(body: Any) -> bool:
    """Whether the model reads sequences of some length with other frequencies."""
    return any(True for _ in _limits(body))


def may_read_in_parts(body: Any, width: int) -> bool:
    """Whether sequences of up to ``width`` tokens have the same frequencies as their beginnings."""
    return all(width <= limit for _, limit in _limits(body))


def _named(body: Any) -> str:
    return type(body).__name__


def _limits(body: Any) -> Iterator[tuple[str, int]]:
    """Kind and limit of every rotary embedding of the model that depends on the length."""
    config = getattr(body, "config", None)
    config = getattr(config, "text_config", None) or config
    for given in _parameters(config):
        kind = str(given.get("rope_type", given.get("type", "")))
        most = getattr(config, "max_position_embeddings", None)
        if kind == "longrope":
            most = given.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", most
            )
        if most is not None and (kind == "longrope" or "dynamic" in kind):
            yield ("longrope" if kind == "longrope" else "dynamic"), int(most)


def _parameters(config: Any) -> list[Mapping[str, Any]]:
    """The settings of each rotary embedding: one, or one per kind of layer."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if not isinstance(given, Mapping):
        return []
    nested = [part for part in given.values() if isinstance(part, Mapping)]
    return nested or [given]
