"""What a run's parts are made from, as values: what differs, and which sessions may add to one run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a source is that parts of a run are made from.

    Results about two identities (weights, tokenizer, adapter, ...) never lie in one run. A circumstance (number format,
    device) changes digits: a run goes on under another one where that is allowed, and the manifest records it.
    """

    identity: Mapping[str, str | None]
    circumstance: Mapping[str, str] = field(default_factory=dict)


def admitted(
    session: Mapping[str, Any], sessions: Sequence[Mapping[str, Any]], *, first: int, allowed: bool
) -> tuple[int, list[Mapping[str, Any]]] | None:
    """The place of ``session`` among those of a run, and all of them; None where it may not go on.

    It may where one of them, that at ``first`` before the others, does not contradict it: that one then names what both
    do. It is a new one where that is ``allowed``.
    """
    if not sessions:
        return 0, [session]
    for at in sorted(range(len(sessions)), key=lambda at: at != first % len(sessions)):
        if not conflicts(sessions[at], session):
            both = {kind: sessions[at][kind] | session[kind] for kind in ("versions", "sources")}
            return at, [*sessions[:at], both, *sessions[at + 1 :]]
    return (len(sessions), [*sessions, session]) if allowed else None


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """``key: old -> new`` for every differing key, nested ones dotted."""
    before, after = _flat(old), _flat(new)
    absent = "(absent)"
    return [
        f"{key}: {before.get(key, absent)!r} -> {after.get(key, absent)!r}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key, absent) != after.get(key, absent)
    ]


def conflicts(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The things that two sessions both name and record differently."""
    before, after = _flat(one), _flat(other)
    return differences(only(before, after), only(after, before))


def only(values: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in names}


def first_differences(changed: list[str]) -> str:
    """The first differences, hashes cut to what distinguishes them."""
    more = f"; and {len(changed) - 6} more" if len(changed) > 6 else ""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28,52}\b", r"\1", "; ".join(changed[:6])) + more


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat
