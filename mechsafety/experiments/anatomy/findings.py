"""What an anatomy found: contrasts of its tables, said by the forms of :mod:`mechsafety.claims`.

What is said of one layer is said of the last, which was fixed before anything was seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mechsafety.claims import corrected_over, decide, sentences
from mechsafety.claims.rows import Say, ends_of, middle, told
from mechsafety.claims.rows import above as counted_above
from mechsafety.claims.sentences import NO_VERDICTS, counted, level, missing, series
from mechsafety.claims.shared import filled, once
from mechsafety.experiments.anatomy.contrasts import (
    ablated,
    above,
    aligned,
    all_of,
    along_direction,
    apart,
    between,
    by_rank,
    carried,
    first_of,
    grown,
    last_layer,
    own_verdicts,
    positions_in,
    refusals,
    sensitivities,
    separated,
    sides,
)
from mechsafety.experiments.anatomy.naming import (
    SAFE,
    SETS,
    UNSAFE,
    WHERE,
    Names,
    Tables,
    families_in,
    models_in,
    rows_of,
    who,
)

Said = Iterator[str]


@once
def anatomy_findings(tables: Tables, *, names: Names) -> dict[str, list[str]]:
    """The sentences of each section that the tables allow; ``names`` are the models' by their part.

    Sections: :data:`_SECTIONS`, in their order. The first sentence of each is the main one.
    """
    return told(filled(tables), _SECTIONS, names)


# -- activations --------------------------------------------------------------------------------------------


def _clusters(tables: Tables, names: Names) -> Said:
    there = models_in(tables["separation"])
    for at in positions_in(tables["separation"]):
        primes = [c for (p, against), c in apart(tables, names).items() if p == at and against in there]
        yield from sentences(*(primes if "tuned" in there else ()))
        yield from sentences(*(c for (p, _), c in separated(tables, names).items() if p == at))


def _attacks(tables: Tables, names: Names) -> Said:
    tuned = rows_of(tables["attack_tau"], model="tuned")
    for positions, contrast in sides(tables, names).items():
        yield from sentences(contrast)
        rows = rows_of(last_layer(tuned, positions), family="all")
        for outcome, name in (("success", "successful"), ("failed", "failed")):
            measure = f"mean tau of {name} attacks {WHERE[positions]}, last layer (safe side: above 0)"
            mean = first_of(rows_of(rows, outcome=outcome), "tau", "low", "high")
            yield level(who("tuned", names), measure, mean, unit="tau")


# -- answers ------------------------------------------------------------------------------------------------


def _interpolation(tables: Tables, names: Names) -> Said:
    if "verdicts" not in tables:
        yield missing(who("tuned", names), NO_VERDICTS)
        return
    alphas = sorted(a for a in set(tables["interpolation"]["alpha"]) if a > 0)
    whole = grown(tables, names)
    yield from sentences(whole)
    rising = [whole if a == 1 else between(tables, names, UNSAFE, 0.0, a) for a in alphas if a <= 1]
    if rising:
        steps = zip(alphas, corrected_over(rising, "alphas"), strict=False)
        yield series([(f"{a:g}", decide(c)) for a, c in steps], of="alphas up to 1")
    if alphas and alphas[-1] > 1:
        groups = (UNSAFE, SAFE, *families_in(tables["interpolation"]))
        beyond = [between(tables, names, group, 1.0, alphas[-1]) for group in groups]
        yield from sentences(*corrected_over(beyond, "groups"))


def _reversal(tables: Tables, names: Names) -> Said:
    if "verdicts" not in tables:
        yield missing(who("tuned", names), NO_VERDICTS)
        return
    yield from sentences(*carried(tables, names))
    for what, start in (("kept", "base"), ("removed", "tuned")):
        ranks = sorted({float(r) for r in rows_of(tables["reversal"], state=what)["r"]})
        steps = zip(ranks, by_rank(tables, what, start, ranks), strict=True)
        if ranks:
            yield series([(f"{r:g}", claim) for r, claim in steps], of="ranks")
    beside = [
        refusals(all_of(names), group, base, tuned, ("base", "tuned"))
        for group in (SAFE, *families_in(tables["reversal"]))
        for base, tuned in [[own_verdicts(tables, role, group) for role in ("base", "tuned")]]
        if base
    ]
    yield from sentences(*corrected_over(beside, "groups"))


def _ablation(tables: Tables, names: Names) -> Said:
    yield from sentences(*ablated(tables, names)) or [missing(who("tuned", names), NO_VERDICTS)]


# -- weights ------------------------------------------------------------------------------------------------


def _weights(tables: Tables, names: Names) -> Said:
    changes = tables["weight_changes"]
    for model in models_in(changes):
        rows = rows_of(changes, model=model)
        if model != "random":
            yield middle(
                who(model, names), f"median ||dW|| / ||W|| over {len(rows)} matrices", rows["relative_norm"]
            )
        yield middle(who(model, names), "median effective rank of dW", rows["effective_rank"], unit="")
    for energy in (90, 99):
        over = aligned(changes, energy)
        what = f"matrices of dW lie closer to the left null space of W ({energy} % energy) than"
        for model in models_in(changes):
            known = rows_of(over, model=model)["excess"].dropna()
            if len(known):
                yield counted(who(model, names), int((known > 0).sum()), len(known), f"{what} by chance")
        hits, n = above(over, "excess", "tuned", "random")
        if n:
            yield counted(who("tuned", names), hits, n, f"{what} a random dW", expected=n / 2)


def _action(tables: Tables, names: Names) -> Said:
    for positions in positions_in(tables["action_ratios"]):
        ratios = rows_of(tables["action_ratios"], positions=positions)
        what = f"matrices with ||dW a|| / ||a|| {WHERE[positions]} larger on unsafe than on safe prompts (interval)"
        for model in models_in(ratios):
            yield from counted_above(
                who(model, names), rows_of(ratios, model=model), "low", 1.0, what, chance=0.025
            )
        yield from ends_of(
            who("tuned", names),
            f"ratio of ||dW a|| / ||a|| {WHERE[positions]}, unsafe over safe,",
            rows_of(ratios, model="tuned"),
            lambda row: f"layer {row['layer']} {row['kind']}",
            *("ratio", "low", "high"),
            unit="",
            of="matrices",
        )


def _links(tables: Tables, names: Names) -> Said:
    table, subject = tables["links"], who("tuned", names)
    hits, n = along_direction(table)
    if n:
        what = (
            "matrices with more of dW's energy along the refusal direction than 97.5 % of random directions"
        )
        yield counted(subject, hits, n, what, expected=0.025 * n)
    measures = {
        "cosine_first": ("|cosine| of the refusal direction with dW's first left singular vector", "cosine"),
        "cosine_top": ("length of the refusal direction within dW's top left singular vectors", "cosine"),
    }
    measures |= {n: (f"share of dW's energy in the weights that {n} scores highest", "share") for n in SETS}
    for name, (measure, unit) in measures.items():
        rows = table[table["what"] == name]
        if rows["value"].notna().any():
            yield middle(subject, f"median {measure}", rows["value"], unit=unit)
            yield middle(subject, f"by chance: {measure}", rows["chance"], unit=unit)


_SECTIONS: Mapping[str, tuple[str, Say]] = {
    "clusters": ("separation", _clusters),
    "attacks": ("attack_tau", _attacks),
    "sensitivity": ("sensitivity", lambda tables, names: sentences(*sensitivities(tables, names))),
    "interpolation": ("interpolation", _interpolation),
    "weights": ("weight_changes", _weights),
    "action": ("action_ratios", _action),
    "reversal": ("reversal", _reversal),
    "links": ("links", _links),
    "ablation": ("ablation", _ablation),
}
