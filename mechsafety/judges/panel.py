"""What panels of judges share: their members and their votes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from mechsafety.core.arguments import listed
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Judge, Label, Response, Verdict
from mechsafety.judges.asking import MISSING
from mechsafety.judges.call_options import CallOptions
from mechsafety.judges.chat_client import require_key
from mechsafety.judges.endpoint_spec import options_of
from mechsafety.judges.latent_classes import MISSING as NO_VOTE
from mechsafety.judges.registry import ModelSource, judge_responses, load_judge
from mechsafety.statistics.tables import ABSTAINING_JUDGES

VOTES: tuple[Label, ...] = ("refusal", "compliance", "degenerate")
"""What a member can vote for. ``unparsed`` is no vote: the member abstained or could not be read."""
PANELS = ("majority", "dawid_skene")


def member_specs(argument: str) -> list[str]:
    """The judges that the argument of a panel names: ``A,B``, or ``(A,B)`` where it stands in a list with commas."""
    argument = argument.strip()
    return listed(argument[1:-1] if argument[:1] == "(" and argument[-1:] == ")" else argument)


def members_of(spec: str) -> list[str]:
    """The members of a panel, and of any other judge itself, without blanks around it."""
    spec = spec.strip()
    name, _, argument = spec.partition(":")
    return member_specs(argument) if name in PANELS else [spec]


def require_keys(specs: Sequence[str]) -> None:
    """Raise MechsafetyError where a judge behind an address, or a member, names a variable for its key that is not set.

    For work that will ask: where nothing is left to be asked, no key is needed.
    """
    for argument in [
        one.partition(":")[2] for spec in specs for one in members_of(spec) if one.startswith("endpoint:")
    ]:
        require_key(options_of(argument, CallOptions()).api_key_env)


def named_members(argument: str | None, *, panel: str, least: int) -> list[str]:
    """The members that ``argument`` names (:func:`member_specs`).

    Raises MechsafetyError for fewer than ``least`` members, a member named twice, and panels within panels.
    """
    example = ",".join(("rules", "phrases:arditi", "phrases:wei")[: max(least, 2)])
    usage = f"write {panel}:({example})"
    specs = member_specs(argument or "")
    if not argument or not all(specs):
        raise MechsafetyError(
            f"judge {panel!r} needs members between commas, got {argument or ''!r}; {usage}"
        )
    if nested := [spec for spec in specs if spec.partition(":")[0] in PANELS]:
        raise MechsafetyError(
            f"judge {panel!r} has the panel {nested[0]!r} as a member; panels do not nest: list its members instead"
        )
    if twice := [spec for spec, n in Counter(specs).items() if n > 1]:
        raise MechsafetyError(f"judge {panel!r} names {twice[0]!r} more than once; name each member once")
    if len(specs) < least:
        raise MechsafetyError(f"judge {panel!r} needs at least {least} members, got {len(specs)}; {usage}")
    return specs


class JudgePanel(ABC):
    """A judge made of judges. Raises MechsafetyError for too few members and for two of one name."""

    kind: str
    least: int
    pooled: ClassVar[bool] = False
    """Whether a verdict depends on the other answers in the call."""

    def __init__(self, members: Sequence[Judge], *, name: str | None = None) -> None:
        names = [member.name for member in members]
        if len(names) < self.least:
            raise MechsafetyError(
                f"judge {self.kind!r} needs at least {self.least} members, got {len(names)}"
            )
        if twice := [member for member, n in Counter(names).items() if n > 1]:
            raise MechsafetyError(
                f"judge {self.kind!r} has {twice[0]!r} more than once; name each member once"
            )
        self.members = tuple(members)
        self.name = name or f"{self.kind}:{','.join(names)}"

    @abstractmethod
    def combine(self, responses: Sequence[Response], given: Sequence[Mapping[str, Verdict]]) -> list[Verdict]:
        """One verdict a response from those of the members by name."""

    def __call__(self, responses: Sequence[Response]) -> list[Verdict]:
        return judge_responses(responses, [self])

    @classmethod
    def of(cls, argument: str | None, *, models: ModelSource | None) -> JudgePanel:
        """The panel whose members ``argument`` lists."""
        return cls(
            [load_judge(spec, models=models) for spec in cls.named(argument)], name=f"{cls.kind}:{argument}"
        )

    @classmethod
    def named(cls, argument: str | None) -> list[str]:
        """The members that ``argument`` lists. Raises MechsafetyError where they make no panel."""
        return named_members(argument, panel=cls.kind, least=cls.least)


def is_below_quorum(labels: Mapping[str, Label]) -> bool:
    """Whether no more than half of the members have a verdict. A judge that only ever abstains has one."""
    present = sum(name in ABSTAINING_JUDGES or label != "unparsed" for name, label in labels.items())
    return 2 * present <= len(labels)


def with_missing(verdict: Verdict, given: Mapping[str, Verdict]) -> Verdict:
    """The panel's verdict with the members that have none: ``detail`` names them with why, a tag says so.

    Below the quorum it is ``unparsed``. Where a member may yet answer, the verdict carries the reason, and is missing
    (:func:`mechsafety.judges.asking.is_missing`) like the member's.
    """
    missing = {
        name: " ".join(one.tags)
        for name, one in given.items()
        if one.label == "unparsed" and name not in ABSTAINING_JUDGES
    }
    if not missing:
        return verdict
    below = is_below_quorum({name: one.label for name, one in given.items()})
    passing = sorted({tag for one in given.values() for tag in MISSING & set(one.tags)})
    return replace(
        verdict,
        label="unparsed" if below else verdict.label,
        tags=(*verdict.tags, *(("quorum",) if below else ()), "missing_member", *passing),
        detail={**verdict.detail, "missing": missing},
    )


def as_votes(
    labels: Sequence[Mapping[str, Label]], members: Sequence[str]
) -> Int[np.ndarray, "response member"]:
    """Numbers of :data:`VOTES`, and NO_VOTE for ``unparsed``."""
    number = {label: i for i, label in enumerate(VOTES)}
    votes = [[number.get(given[name], NO_VOTE) for name in members] for given in labels]
    return np.array(votes, dtype=np.int64).reshape(len(labels), len(members))
