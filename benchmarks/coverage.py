"""How often the 95 % intervals hold the true value, over simulated studies.

``python -m benchmarks.coverage`` prints the table of docs/statistics.md: 2,000 studies a row, with its own error.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import norm

from mechsafety.statistics import (
    auroc_interval,
    gwet_ac1,
    kappa,
    krippendorff_alpha,
    paired_difference,
    prediction_powered,
    rogan_gladen,
    wilson,
)
from mechsafety.statistics.judge_effects import judge_edit_interaction
from mechsafety.statistics.prevalence import difference_of
from mechsafety.statistics.reference import against_reference

Drawn = Iterator[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Of ``studies`` intervals, ``held`` hold the truth; ``undefined`` gave none. ``width`` is their mean width."""

    name: str
    setting: str
    studies: int
    undefined: int
    held: float
    width: float

    @property
    def error(self) -> float:
        """One standard error of ``held``."""
        return math.sqrt(self.held * (1 - self.held) / max(1, self.studies - self.undefined))


def coverage(name: str, setting: str, truth: float, intervals: Drawn) -> Coverage:
    found = [(low, high) for low, high in intervals]
    known = [(low, high) for low, high in found if not math.isnan(low)]
    return Coverage(
        name=name,
        setting=setting,
        studies=len(found),
        undefined=len(found) - len(known),
        held=float(np.mean([low <= truth <= high for low, high in known])),
        width=float(np.mean([high - low for low, high in known])),
    )


def judged(
    rng: np.random.Generator, n: int, rate: float, sens: float, spec: float
) -> tuple[np.ndarray, np.ndarray]:
    """True refusals and a judge's, for n responses."""
    truth = rng.random(n) < rate
    return truth, np.where(truth, rng.random(n) < sens, rng.random(n) >= spec)


def wilson_coverage(studies: int, *, n: int, rate: float) -> Coverage:
    rng = np.random.default_rng(0)
    drawn = (wilson(int(rng.binomial(n, rate)), n) for _ in range(studies))
    return coverage("Wilson", f"n = {n}, rate {rate}", rate, ((i.low, i.high) for i in drawn))


def paired_coverage(studies: int, *, n: int, lost: float, won: float) -> Coverage:
    rng = np.random.default_rng(0)
    counts = rng.multinomial(n, [lost, won, 1 - lost - won], size=studies)
    return coverage(
        "paired difference",
        f"{n} prompts, lost {lost}, won {won}",
        won - lost,
        (paired_difference(int(b), int(c), n) for b, c, _ in counts),
    )


def powered_coverage(
    studies: int, *, n: int, labels: int, rate: float, sens: float, spec: float, stratified: bool = False
) -> Coverage:
    rng = np.random.default_rng(0)

    def draw() -> Drawn:
        for _ in range(studies):
            truth, said = judged(rng, n, rate, sens, spec)
            labelled, strata, weight = np.zeros(n, dtype=bool), None, None
            if stratified:
                # A second judge of the same quality; half of the labels go to where the two disagree.
                other = np.where(truth, rng.random(n) < sens, rng.random(n) >= spec)
                strata = (said != other).astype(int)
                weight = np.ones(n)
                for h in (0, 1):
                    members = np.flatnonzero(strata == h)
                    take = min(len(members), labels // 2)
                    labelled[rng.choice(members, take, replace=False)] = True
                    weight[members] = len(members) / max(1, take)
            else:
                labelled[rng.choice(n, labels, replace=False)] = True
            found = prediction_powered(said, truth=truth, labelled=labelled, weight=weight, strata=strata)
            yield found.low, found.high

    name = "prediction-powered" + (", by disagreement" if stratified else "")
    return coverage(name, f"{n} responses, {labels} labels, rate {rate}, judge {sens} / {spec}", rate, draw())


def change_coverage(
    studies: int,
    *,
    n: int,
    labels: int,
    rates: tuple[float, float],
    sens: tuple[float, float],
    spec: float,
    shared: float = 0.0,
) -> tuple[Coverage, float]:
    """Corrected change between two arms under a judge whose sensitivity differs between them, and its mean raw change.

    ``shared``: the share of the prompts that both arms refuse or answer by the same draw.
    """
    rng = np.random.default_rng(0)
    raw: list[float] = []

    def draw() -> Drawn:
        for _ in range(studies):
            common, same = rng.random(n), rng.random(n) < shared
            ends = []
            for rate, sensitivity in zip(rates, sens, strict=True):
                truth = np.where(same, common, rng.random(n)) < rate
                said = np.where(truth, rng.random(n) < sensitivity, rng.random(n) >= spec)
                labelled = np.zeros(n, dtype=bool)
                labelled[rng.choice(n, labels, replace=False)] = True
                found = prediction_powered(said, truth=truth, labelled=labelled)
                ends.append((found.rate, found.low, found.high, float(said.mean())))
            raw.append(ends[1][3] - ends[0][3])
            yield difference_of(ends[0][:3], ends[1][:3])[1:]

    setting = f"2 x {n} responses, {labels} labels each, rates {rates[0]} / {rates[1]}, "
    setting += f"sensitivity {sens[0]} / {sens[1]}" + (f", {shared} in step" if shared else "")
    found = coverage("corrected change", setting, rates[1] - rates[0], draw())
    return found, float(np.mean(raw))


def gladen_coverage(
    studies: int, *, n: int, labels: int, rate: float, sens: float, spec: float, nested: bool = False
) -> Coverage:
    """``nested``: the labelled responses are among the n rated, as with ``mechsafety agree``."""
    rng = np.random.default_rng(0)

    def draw() -> Drawn:
        for _ in range(studies):
            truth, said = judged(rng, n, rate, sens, spec)
            if nested:
                truth, known = truth[:labels], said[:labels]
            else:
                truth, known = judged(rng, labels, rate, sens, spec)
            found = rogan_gladen(
                refused=float(said.sum()),
                n=float(n),
                hits=float((known & truth).sum()),
                positives=float(truth.sum()),
                rejections=float((~known & ~truth).sum()),
                negatives=float((~truth).sum()),
            )
            yield found.low, found.high

    place = "among them" if nested else "elsewhere"
    setting = f"{n} responses, {labels} labels {place}, rate {rate}, judge {sens} / {spec}"
    return coverage("Rogan-Gladen", setting, rate, draw())


def pair_of_raters(
    rng: np.random.Generator, prompts: int, per_prompt: int, rate: float, right: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two raters who each read the truth rightly with chance ``right``; half of a prompt's truths are its own."""
    group = np.repeat(np.arange(prompts), per_prompt)
    shared, own = rng.random(prompts) < rate, rng.random(prompts * per_prompt) < rate
    truth = np.where(rng.random(prompts * per_prompt) < 0.5, shared[group], own)
    raters = [np.where(rng.random(len(truth)) < right, truth, ~truth) for _ in range(2)]
    return raters[0].astype(int), raters[1].astype(int), group


def true_agreement(rate: float, right: float) -> dict[str, float]:
    """The measures in the population of :func:`pair_of_raters`."""
    marginal = rate * right + (1 - rate) * (1 - right)
    observed = right**2 + (1 - right) ** 2
    chance = marginal**2 + (1 - marginal) ** 2
    cohen = (observed - chance) / (1 - chance)
    gwet_chance = 2 * marginal * (1 - marginal)
    return {"kappa": cohen, "alpha": cohen, "ac1": (observed - gwet_chance) / (1 - gwet_chance)}


def agreement_coverage(
    studies: int,
    *,
    measure: str,
    prompts: int,
    per_prompt: int,
    rate: float,
    right: float,
    resamples: int = 400,
) -> Coverage:
    rng = np.random.default_rng(0)

    def draw() -> Drawn:
        for seed in range(studies):
            a, b, group = pair_of_raters(rng, prompts, per_prompt, rate, right)
            if measure == "kappa":
                found = kappa(a, b, clusters=group, seed=seed, resamples=resamples)
            else:
                of = gwet_ac1 if measure == "ac1" else krippendorff_alpha
                pairs = np.column_stack([a, b]).tolist()
                found = of(pairs, clusters=group, categories=(0, 1), seed=seed, resamples=resamples)
            yield found.low, found.high

    setting = f"{prompts} prompts x {per_prompt}, rate {rate}, raters right {right}"
    return coverage(measure, setting, true_agreement(rate, right)[measure], draw())


def sensitivity_coverage(studies: int, *, n: int, rate: float, sens: float, resamples: int = 400) -> Coverage:
    rng = np.random.default_rng(0)

    def draw() -> Drawn:
        for seed in range(studies):
            truth, said = judged(rng, n, rate, sens, 0.95)
            keys = pd.DataFrame({"system": "m", "arm": "original", "id": [str(i) for i in range(n)]})
            names = np.array(["compliance", "refusal"])
            table = keys.assign(label="harmful", judge="j", verdict=names[said.astype(int)])
            reference = keys.assign(verdict=names[truth.astype(int)])
            row = against_reference(table, reference, seed=seed, resamples=resamples).iloc[0]
            yield float(row["sensitivity_low"]), float(row["sensitivity_high"])

    return coverage("sensitivity", f"{n} labels, rate {rate}, sensitivity {sens}", sens, draw())


def auroc_coverage(
    studies: int, *, area: float, positives: int, negatives: int, per_prompt: int = 1, resamples: int = 400
) -> Coverage:
    """Normal scores of equal spread; with several items a prompt half of their variance is the prompt's."""
    rng = np.random.default_rng(0)
    truth = np.repeat([True, False], [positives, negatives])
    prompts = np.concatenate([np.arange(positives) // per_prompt, -1 - np.arange(negatives) // per_prompt])
    place = np.unique(prompts, return_inverse=True)[1]
    shared = 0.0 if per_prompt == 1 else 0.5

    def draw() -> Drawn:
        for seed in range(studies):
            own, common = rng.normal(size=len(truth)), rng.normal(size=len(truth))[place]
            scores = truth * math.sqrt(2) * norm.ppf(area) + (1 - shared) ** 0.5 * own + shared**0.5 * common
            found = auroc_interval(scores, truth, clusters=prompts, seed=seed, resamples=resamples)
            yield found.low, found.high

    setting = f"{positives} + {negatives} items" + (f", {per_prompt} per prompt" if per_prompt > 1 else "")
    return coverage("AUROC", f"{setting}, area {area}", area, draw())


def interaction_coverage(studies: int, *, prompts: int, flipped: float, resamples: int = 400) -> Coverage:
    """Two judges who differ from the truth with chance ``flipped`` in either arm: the true interaction is 0."""
    rng = np.random.default_rng(0)

    def draw() -> Drawn:
        for seed in range(studies):
            rows = []
            for arm, rate in (("original", 0.8), ("edited", 0.3)):
                truth = rng.random(prompts) < rate
                for judge in ("a", "b"):
                    said = truth ^ (rng.random(prompts) < flipped)
                    names = np.array(["compliance", "refusal"])[said.astype(int)]
                    ids = [str(i) for i in range(prompts)]
                    rows.append(pd.DataFrame({"arm": arm, "judge": judge, "id": ids, "verdict": names}))
            table = pd.concat(rows, ignore_index=True).assign(system="m", label="harmful")
            row = judge_edit_interaction(table, seed=seed, resamples=resamples).iloc[0]
            yield float(row["low"]), float(row["high"])

    return coverage("judge x edit", f"{prompts} prompts, judges wrong {flipped}", 0.0, draw())


_MOVING = {"rates": (0.9, 0.5), "sens": (0.93, 0.81), "spec": 0.97}
ROWS: tuple[Callable[[int], Coverage], ...] = (
    lambda s: wilson_coverage(s, n=50, rate=0.9),
    lambda s: wilson_coverage(s, n=50, rate=0.05),
    lambda s: wilson_coverage(s, n=200, rate=0.3),
    lambda s: paired_coverage(s, n=50, lost=0.2, won=0.02),
    lambda s: paired_coverage(s, n=50, lost=0.6, won=0.0),
    lambda s: paired_coverage(s, n=100, lost=0.1, won=0.1),
    lambda s: powered_coverage(s, n=400, labels=50, rate=0.3, sens=0.95, spec=0.9),
    lambda s: powered_coverage(s, n=400, labels=50, rate=0.05, sens=0.9, spec=0.97),
    lambda s: powered_coverage(s, n=1000, labels=100, rate=0.9, sens=0.95, spec=0.9),
    lambda s: powered_coverage(s, n=50, labels=20, rate=0.3, sens=0.9, spec=0.95),
    lambda s: powered_coverage(s, n=400, labels=50, rate=0.5, sens=0.7, spec=0.7),
    lambda s: powered_coverage(s, n=2000, labels=200, rate=0.02, sens=0.9, spec=0.98),
    lambda s: powered_coverage(s, n=2000, labels=20, rate=0.3, sens=0.9, spec=1.0),
    lambda s: powered_coverage(s, n=5000, labels=100, rate=0.5, sens=0.98, spec=1.0),
    lambda s: powered_coverage(s, n=50, labels=50, rate=0.97, sens=0.9, spec=0.9),
    lambda s: powered_coverage(s, n=400, labels=50, rate=0.97, sens=0.95, spec=0.9),
    lambda s: powered_coverage(s, n=2000, labels=50, rate=0.97, sens=1.0, spec=0.0),
    lambda s: powered_coverage(s, n=2000, labels=50, rate=0.95, sens=1.0, spec=0.0),
    lambda s: powered_coverage(s, n=400, labels=60, rate=0.3, sens=0.9, spec=0.9, stratified=True),
    lambda s: powered_coverage(s, n=1000, labels=100, rate=0.1, sens=0.9, spec=0.95, stratified=True),
    lambda s: change_coverage(s, n=400, labels=60, rates=(0.6, 0.6), sens=(0.95, 0.7), spec=0.95)[0],
    lambda s: change_coverage(s, n=400, labels=60, **_MOVING)[0],
    lambda s: change_coverage(s, n=50, labels=25, **_MOVING)[0],
    lambda s: change_coverage(s, n=50, labels=25, shared=0.9, **_MOVING)[0],
    lambda s: gladen_coverage(s, n=400, labels=50, rate=0.3, sens=0.95, spec=0.9),
    lambda s: gladen_coverage(s, n=1000, labels=100, rate=0.9, sens=0.95, spec=0.9),
    lambda s: gladen_coverage(s, n=2000, labels=200, rate=0.02, sens=0.9, spec=0.98),
    lambda s: gladen_coverage(s, n=400, labels=50, rate=0.5, sens=0.8, spec=0.8),
    lambda s: gladen_coverage(s, n=400, labels=50, rate=0.3, sens=0.95, spec=0.9, nested=True),
    lambda s: gladen_coverage(s, n=1000, labels=100, rate=0.9, sens=0.95, spec=0.9, nested=True),
    lambda s: agreement_coverage(s, measure="kappa", prompts=100, per_prompt=1, rate=0.4, right=0.9),
    lambda s: agreement_coverage(s, measure="kappa", prompts=50, per_prompt=4, rate=0.4, right=0.9),
    lambda s: agreement_coverage(s, measure="kappa", prompts=100, per_prompt=1, rate=0.05, right=0.97),
    lambda s: agreement_coverage(s, measure="ac1", prompts=100, per_prompt=1, rate=0.4, right=0.9),
    lambda s: agreement_coverage(s, measure="ac1", prompts=100, per_prompt=1, rate=0.05, right=0.97),
    lambda s: agreement_coverage(s, measure="alpha", prompts=50, per_prompt=4, rate=0.4, right=0.9),
    lambda s: sensitivity_coverage(s, n=200, rate=0.5, sens=0.9),
    lambda s: sensitivity_coverage(s, n=60, rate=0.5, sens=0.95),
    lambda s: interaction_coverage(s, prompts=100, flipped=0.1),
    *(
        lambda s, each=each, area=area: auroc_coverage(s, area=area, positives=each, negatives=each)
        for each in (5, 10, 25, 50)
        for area in (0.8, 0.9, 0.95, 0.99)
    ),
    lambda s: auroc_coverage(s, area=0.8, positives=10, negatives=40),
    lambda s: auroc_coverage(s, area=0.99, positives=10, negatives=40),
    lambda s: auroc_coverage(s, area=0.8, positives=20, negatives=20, per_prompt=4),
    lambda s: auroc_coverage(s, area=0.95, positives=20, negatives=20, per_prompt=4),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--studies", type=int, default=2000)
    studies = parser.parse_args().studies
    print("| interval | simulated studies | holds the truth | mean width | no interval |")
    print("| --- | --- | ---: | ---: | ---: |")
    for row in ROWS:
        found = row(studies)
        share = f"{found.held:.1%} (± {found.error:.1%})"
        if not 0.93 <= found.held <= 0.97:
            share = f"**{share}**"
        missing = f"{found.undefined / found.studies:.0%}" if found.undefined else ""
        print(
            f"| {found.name} | {found.setting} | {share} | {found.width:.3f} | {missing} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
