"""Judge ``dawid_skene:(MEMBER,MEMBER,MEMBER)``: several judges weighed by how they err, without a reference.

The model of :mod:`mechsafety.judges.latent_classes` is fitted on all the responses given together, so a verdict
depends on the others: judge all arms of a comparison in one call, as a study does. A single answer is refused.
A member's ``unparsed`` is a missing vote. A member that only ever gives one label (``degeneracy``) contributes nothing
here, because its votes do not depend on the class. Two members that err together are believed twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Label, Response, Verdict
from mechsafety.judges.latent_classes import MISSING, LatentClasses, fit_latent_classes
from mechsafety.judges.panel import VOTES, JudgePanel, as_votes, with_missing

TAKES = "judges"
ABOUT = "dawid_skene:(JUDGE,JUDGE,JUDGE)  judges weighed by how they err (EM on all responses given)"

_TIE = 1e-6  # posteriors nearer than this are a draw


class DawidSkeneJudge(JudgePanel):
    """The most probable label given all votes.

    ``detail`` of each verdict: the members' labels, the posterior, and of the fit (equal in all verdicts of a call)
    each member's confusion matrix by true and given label, its ``information`` in nats (0: it guesses) and whether EM
    came to rest. ``unparsed`` carries ``tie`` for a draw or no votes (``no_votes``), ``not_identified`` where the fit
    renamed the classes.
    """

    kind = "dawid_skene"
    least = 3
    pooled = True

    def combine(self, responses: Sequence[Response], given: Sequence[Mapping[str, Verdict]]) -> list[Verdict]:
        if len(responses) == 1:
            raise MechsafetyError(
                f"judge {self.name!r} is fitted on many answers and got one: give it all answers of a comparison in "
                "one call, or take majority:"
            )
        names = [member.name for member in self.members]
        return fitted_verdicts(responses, given, judge=self.name, members=names)


def fitted_verdicts(
    responses: Sequence[Response],
    given: Sequence[Mapping[str, Verdict]],
    *,
    judge: str,
    members: Sequence[str],
) -> list[Verdict]:
    """The verdicts of one fit on all ``responses``; ``given`` are the members' by name, one mapping a response."""
    labels: list[dict[str, Label]] = [{name: one.label for name, one in by_name.items()} for by_name in given]
    fitted = _fitted(responses, labels, judge=judge, members=members)
    return [with_missing(verdict, by_name) for verdict, by_name in zip(fitted, given, strict=True)]


def _fitted(
    responses: Sequence[Response], labels: Sequence[dict[str, Label]], *, judge: str, members: Sequence[str]
) -> list[Verdict]:
    votes = as_votes(labels, members)
    voted = [bool((row != MISSING).any()) for row in votes]
    if not any(voted):
        return [_unvoted(r, given, judge) for r, given in zip(responses, labels, strict=True)]
    fit = fit_latent_classes(votes, n_classes=len(VOTES))
    about = _about(fit, members)
    return [
        _verdict(r, given, row, about, judge, identified=fit.identified)
        if cast
        else _unvoted(r, given, judge)
        for r, given, row, cast in zip(responses, labels, fit.posterior, voted, strict=True)
    ]


def _about(fit: LatentClasses, names: Sequence[str]) -> dict[str, object]:
    return {
        "confusion": {
            name: {true: _shares(row) for true, row in zip(VOTES, matrix, strict=True)}
            for name, matrix in zip(names, fit.confusion, strict=True)
        },
        "information": dict(zip(names, fit.information.round(4).tolist(), strict=True)),
        "prior": _shares(fit.prior),
        "converged": fit.converged,
    }


def _verdict(
    response: Response,
    given: dict[str, Label],
    posterior: Float[np.ndarray, " label"],
    about: dict[str, object],
    judge: str,
    *,
    identified: bool,
) -> Verdict:
    second, first = np.sort(posterior)[-2:]
    reasons = () if identified else ("not_identified",)
    reasons += ("tie",) if first - second < _TIE else ()
    return Verdict(
        id=response.id,
        judge=judge,
        label="unparsed" if reasons else VOTES[int(posterior.argmax())],
        tags=reasons,
        detail={"members": given, "posterior": _shares(posterior), **about},
    )


def _unvoted(response: Response, given: dict[str, Label], judge: str) -> Verdict:
    return Verdict(
        id=response.id, judge=judge, label="unparsed", tags=("tie", "no_votes"), detail={"members": given}
    )


def _shares(row: Float[np.ndarray, " label"]) -> dict[str, float]:
    return {label: round(float(p), 4) for label, p in zip(VOTES, row, strict=True)}


JUDGE = DawidSkeneJudge
