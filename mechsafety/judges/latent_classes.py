"""The latent class model of Dawid and Skene: true classes and errors of several fallible raters, from their votes.

A. P. Dawid and A. M. Skene, "Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm", Journal
of the Royal Statistical Society C 28 (1979), 20-28, https://doi.org/10.2307/2346806. Item i has a true class c drawn
from ``prior``; rater r, given c, votes k with probability ``confusion[r, c, k]``, independently of the other raters.
Raters that err together (two phrase lists, for example) break that independence, and the posterior is then too sure.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from jaxtyping import Float, Int

from mechsafety.core.errors import MechsafetyError

MISSING = -1
"""The vote of a rater who did not vote. It is left out of the likelihood, not counted as an error."""
_LEAST = 1e-10  # probabilities are kept above it, so that their logarithms are finite


@dataclass(frozen=True, kw_only=True)
class LatentClasses:
    """The fitted model. Rows of ``posterior`` and of ``confusion[r]`` sum to 1; ``log_likelihoods`` are in nats."""

    posterior: Float[np.ndarray, "item c"]
    """P(true class | votes). An item without votes has the prior."""
    prior: Float[np.ndarray, " c"]
    confusion: Float[np.ndarray, "rater c vote"]
    log_likelihoods: tuple[float, ...]
    """One per iteration; EM never lowers it."""
    converged: bool

    @property
    def information(self) -> Float[np.ndarray, " rater"]:
        """Mutual information of the true class and each rater's vote, in nats: 0 for one who guesses."""
        marginal = np.einsum("c,rck->rk", self.prior, self.confusion)
        joint = self.prior[None, :, None] * self.confusion
        return np.maximum((joint * np.log(self.confusion / marginal[:, None, :])).sum((1, 2)), 0.0)

    @property
    def identified(self) -> bool:
        """Whether the classes that occur still bear their own names.

        The likelihood does not change when classes are renamed. They bear their names when no other assignment puts
        more of the raters' votes on the diagonal; otherwise most raters would be wrong more often than right.
        """
        present = np.flatnonzero(self.prior > 1e-6)
        mean = self.confusion.mean(0)
        own = mean[present, present].sum()
        return all(mean[present, list(other)].sum() <= own + 1e-9 for other in permutations(present))


def fit_latent_classes(
    votes: Int[np.ndarray, "item rater"], *, n_classes: int, max_steps: int = 1000, tolerance: float = 1e-9
) -> LatentClasses:
    """Fit by EM from the shares of votes (majority initialisation) until the log-likelihood stands still.

    ``tolerance`` is the least gain of a step, in nats per item.

    ``votes`` holds class numbers 0 ... n_classes - 1, or :data:`MISSING`. The start fixes which class is which.
    Raises MechsafetyError for votes that are no class and when nobody voted.
    """
    if n_classes < 2 or max_steps < 1:
        raise MechsafetyError(f"{n_classes} classes and {max_steps} steps: at least 2 and 1 are needed")
    if votes.size and (votes.min() < MISSING or votes.max() >= n_classes):
        raise MechsafetyError(
            f"votes lie between {votes.min()} and {votes.max()}; classes are 0 to {n_classes - 1}, {MISSING} is missing"
        )
    # One 1 for each vote; a missing vote is a row of zeros and drops out of every sum.
    cast = (votes[..., None] == np.arange(n_classes)).astype(float)
    voted = cast.any((1, 2))
    if not voted.any():
        raise MechsafetyError("no rater voted on any item; there is nothing to fit")
    share = cast[voted].sum(1)
    posterior = share / share.sum(1, keepdims=True)
    seen: list[float] = []
    converged = False
    while not converged and len(seen) < max_steps:
        prior, confusion = _maximise(posterior, cast[voted])
        joint = _log_joint(prior, confusion, cast[voted])
        evidence = np.logaddexp.reduce(joint, axis=1)
        posterior = np.exp(joint - evidence[:, None])
        seen.append(float(evidence.sum()))
        converged = len(seen) > 1 and seen[-1] - seen[-2] < tolerance * len(posterior)
    prior, confusion = _maximise(posterior, cast[voted])
    everywhere = np.tile(prior, (len(votes), 1))
    everywhere[voted] = posterior
    return LatentClasses(
        posterior=everywhere,
        prior=prior,
        confusion=confusion,
        log_likelihoods=tuple(seen),
        converged=converged,
    )


def _maximise(
    posterior: Float[np.ndarray, "item c"], cast: Float[np.ndarray, "item rater vote"]
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, "rater c vote"]]:
    """Equations 2.3 and 2.4 of the paper: expected counts, divided by their sums."""
    prior = np.maximum(posterior.mean(0), _LEAST)
    counts = np.maximum(np.einsum("ic,irk->rck", posterior, cast), _LEAST)
    return prior / prior.sum(), counts / counts.sum(2, keepdims=True)


def _log_joint(
    prior: Float[np.ndarray, " c"],
    confusion: Float[np.ndarray, "rater c vote"],
    cast: Float[np.ndarray, "item rater vote"],
) -> Float[np.ndarray, "item c"]:
    """log P(true class, votes); normalised, it is equation 2.5."""
    return np.log(prior) + np.einsum("irk,rck->ic", cast, np.log(confusion))
