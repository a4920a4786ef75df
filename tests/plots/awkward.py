"""Every figure by awkward data: few and many systems, long names, one judge, zeros, nothing known, negative kappa."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from mechsafety import plots
from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.anatomy.figures import anatomy_figures
from mechsafety.experiments.audit.figures import audit_figures
from mechsafety.experiments.lab.figures import lab_figures
from mechsafety.experiments.ladder.figures import ladder_figures
from mechsafety.experiments.regions.figures import region_figures
from mechsafety.experiments.selfjudgement.figures import selfjudge_figures
from mechsafety.experiments.study.figures import self_judgement
from mechsafety.plots.by_layer import layer_lines
from mechsafety.plots.by_token import token_curves
from mechsafety.plots.look import looking
from tests import anatomy_tables, lab_tables, ladder_tables, region_tables

LONG = "a-checkpoint-whose-name-is-as-long-as-file-systems-bear-with"
JUDGES = ("rules", "phrases:granular", "embedding", "logit", "text")
ARMS, LABELS = ("original", "edited"), ("harmful", "harmless")
Drawing = Callable[[], go.Figure]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of awkward data; ``value`` fills every measure where it is given."""

    systems: tuple[str, ...] = ("org/model-a", "org/model-b+adapter")
    judges: tuple[str, ...] = JUDGES
    value: float | None = None
    kappa: float = 0.42
    name: str = "model-a"

    def rows(self, measures: Mapping[str, float], **keys: Sequence[Any]) -> pd.DataFrame:
        """One row per combination of ``keys``, with the same measures in each."""
        found = [dict(zip(keys, each, strict=True)) for each in itertools.product(*keys.values())]
        return pd.DataFrame(found).assign(**{key: self.of(value) for key, value in measures.items()})

    def of(self, value: float) -> float:
        return value if self.value is None else self.value

    def filled(self, table: pd.DataFrame, *kept: str) -> pd.DataFrame:
        """A table with every number but those ``kept`` replaced."""
        if self.value is None:
            return table
        measures = [c for c in table.select_dtypes("float").columns if c not in kept]
        return table.assign(**dict.fromkeys(measures, self.value))


CASES: Mapping[str, Case] = {
    "plain": Case(),
    "one system": Case(systems=("org/model-a",)),
    "twenty systems": Case(systems=tuple(f"org/model-{n}-7b-instruct" for n in range(20))),
    "long names": Case(
        systems=(f"{LONG}", f"org/{LONG[:-4]}-two"), judges=(f"{LONG[:58]}-1", f"{LONG[:58]}-2"), name=LONG
    ),
    "one judge": Case(judges=("rules",)),
    "zeros": Case(value=0.0),
    "nothing known": Case(value=math.nan),
    "negative kappa": Case(kappa=-0.31),
}


def drawings(case: Case) -> dict[str, Drawing]:
    """What draws each figure, by its name."""
    found = _of_studies(case) | _of_sweeps(case) | _of_checkpoints(case) | _of_experiments(case)
    assert set(found) >= set(plots.__all__), set(plots.__all__) - set(found)
    return found


def drawn(case: Case, *, runs: bool = True, **look: Any) -> dict[str, go.Figure]:
    """Every figure that the data allow (that there is nothing to draw is an answer too); those of whole ``runs`` too."""
    found: dict[str, go.Figure] = {}
    with looking(**look):
        for name, draw in drawings(case).items():
            try:
                found[name] = draw()
            except MechsafetyError:
                assert case.value is not None, name
        found |= _several(case) if runs else {}
    return found


def _of_studies(case: Case) -> dict[str, Drawing]:
    ends = {"low": 0.2, "high": 0.6}
    states = {"system": case.systems, "arm": ARMS, "label": LABELS, "judge": case.judges}
    shares = {"refusal": 20.0, "compliance": 26.0, "degenerate": 4.0}
    rates = case.rows({"rate": 0.4, **ends, **shares}, **states).assign(n=50, unparsed=0)
    if case.value is None:
        rates.loc[rates.index[-1], "unparsed"] = 3
    tests = case.rows({"p": 0.01, "p_holm": 0.02}, system=case.systems, label=LABELS, judge=case.judges)
    drawn_at_random = {"refused": 0.4, "complied": 0.5, "degenerate": 0.1}
    controls = case.rows(drawn_at_random, system=case.systems, judge=case.judges, draw=(0, 1, 2))
    pairs = list(itertools.combinations((*case.judges, "another judge"), 2))
    agreement = pd.DataFrame(pairs, columns=["judge_a", "judge_b"]).assign(arm="all", n=50)
    agreement = agreement.assign(
        kappa=case.of(case.kappa), low=case.of(case.kappa - 0.2), high=case.of(case.kappa + 0.2)
    )
    effects = case.rows(
        {"change": -0.4, "low": -0.6, "high": -0.2},
        system=case.systems,
        label=LABELS,
        judge=case.judges,
        mapping=("refusal", "no clear compliance"),
    )
    effects["significant"] = effects.index % 3 > 0
    of_each = {
        f"{measure}{end}": 0.7 for measure in ("sensitivity", "specificity") for end in ("", "_low", "_high")
    }
    errors = case.rows(of_each, judge=case.judges, arm=ARMS, label=("all",)).assign(n=20)
    estimates = {
        f"{name}{end}": 0.5 for name in ("human", "ppi", "rogan_gladen") for end in ("", "_low", "_high")
    }
    corrected = case.rows(
        {"raw": 0.4, **estimates}, system=("all", *case.systems), label=LABELS, judge=case.judges, arm=ARMS
    )
    corrected["labels"] = 30
    points = case.rows({"pc1": 1.0, "pc2": -1.0, "explained1": 0.4, "explained2": 0.2}, id=range(8))
    points = points.assign(label=["harmful", "harmless"] * 4, pc1=[case.of(float(n)) for n in range(8)])
    aucs = {"auc": 0.8, "low": 0.7, "high": 0.9, "auc_shuffled": 0.5, "auc_length": 0.55}
    own = case.rows(aucs, system=case.systems, arm=ARMS)
    return {
        "outcome_bars": lambda: plots.outcome_bars(rates, tests),
        "outcome_bars with controls": lambda: plots.outcome_bars(rates, tests, controls=controls),
        "refusal_heatmap": lambda: plots.refusal_heatmap(rates),
        "pca_scatter": lambda: plots.pca_scatter(points, name=case.name, layer=3),
        "judge_agreement": lambda: plots.judge_agreement(agreement),
        "effect_forest": lambda: plots.effect_forest(effects),
        "error_dots": lambda: plots.error_dots(errors),
        "corrected_rates_figure": lambda: plots.corrected_rates_figure(corrected),
        "self_judgement": lambda: self_judgement(own),
        "reliability_figure": lambda: plots.reliability_figure(_calibration(case)),
    }


def _calibration(case: Case) -> pd.DataFrame:
    measures = {"mean_p": 0.4, "rate": 0.5, "low": 0.3, "high": 0.7}
    keys = {"system": case.systems, "kind": ("raw", "content_free"), "judge_arm": ARMS, "response_arm": ARMS}
    return case.rows(measures, **keys, bin=(0, 1)).assign(n=12)


def _of_sweeps(case: Case) -> dict[str, Drawing]:
    measures = {"auroc": 0.8, "bypass": -2.0, "induce": 1.5, "kl": 0.2}
    methods = ("mean_difference", "pca", "leace", "probe")
    scores = case.rows(measures, method=methods, position=(-3, -2, -1), layer=range(24))
    of_one = scores[scores["method"] == "pca"]
    lengths = {
        "relative_norm": 0.2,
        "auroc": 0.8,
        "auroc_low": 0.7,
        "auroc_high": 0.9,
        "cosine_previous": 0.9,
    }
    profile = case.rows(lengths | {f"explained_{k}": 0.3 / k for k in range(1, 6)}, layer=range(24))
    profile = profile.assign(cosine_selected=1.0)
    tokens = [" Sorry", "I", "\n\n", " cannot", "a-token-that-is-long", "'", '"', "<b>", " é", " the"]
    lens = case.rows({"logit": 2.0}, side=("suppressed", "promoted"), rank=range(1, 11))
    lens = lens.assign(token=tokens * 2)
    stability = case.rows({"share": 0.1}, position=(-2, -1), layer=range(5))
    stability["layer"] = stability["layer"].astype("Int64")
    curves = {f"layer {n}": [case.of(float(n + k)) for k in range(30)] for n in (3, 8)}
    table = case.rows({"norm": 1.0, "stability": 0.9}, position=(-2, -1), layer=range(24))
    return {
        "layer_sweep": lambda: plots.layer_sweep(_Sweep(of_one, case.name)),
        "layer_sweep_table": lambda: plots.layer_sweep_table(
            of_one, name=case.name, selected=5, base=(4.0, -3.0), position=-1
        ),
        "profile_figure": lambda: plots.profile_figure(profile, name=case.name, selected=7),
        "score_heatmap": lambda: plots.score_heatmap(of_one, name=case.name, selected=(-1, 5)),
        "method_lines": lambda: plots.method_lines(scores, name=case.name),
        "lens_figure": lambda: plots.lens_figure(lens, name=case.name, layer=5),
        "stability_bars": lambda: plots.stability_bars(stability, name=case.name),
        "dose_figure": lambda: plots.dose_figure(_doses(case), name=case.name),
        "heat_map": lambda: plots.heat_map(
            [[case.of(float(a - b)) for a in range(24)] for b in range(len(case.systems))],
            x=range(24),
            y=case.systems,
            titles=("layer", "system", "cosine"),
        ),
        "layer_lines": lambda: layer_lines(
            table,
            {"norm": "norm", "stability": "stability"},
            title=f"{case.name}: directions by layer",
            subtitle="Stability: mean cosine with the directions of bootstrap resamples.",
            **{"width": 860, "height": 620},
        ),
        "token_curves": lambda: token_curves(
            curves, tokens=tokens * 3, positions=list(range(-10, 20)), title=f"{case.name}: projection"
        ),
    }


@dataclass(frozen=True)
class _Sweep:
    frame: pd.DataFrame
    model_name: str
    base_harmful: float = 4.0
    base_harmless: float = -3.0
    selected_layer: int = 5
    selected_position: int = -1

    def to_frame(self) -> pd.DataFrame:
        return self.frame


def _doses(case: Case) -> pd.DataFrame:
    measures = {"refused": 0.5, "low": 0.3, "high": 0.7, "degenerate": 0.1, "kl": 0.4, "perplexity": 9.0}
    doses = {
        "alpha": ("0.25", "0.5", "1"),
        "directions": ("1", "2", "4"),
        "layers": ("one layer", "all layers"),
    }
    parts = [
        case.rows(measures, family=(family,), dose=("unedited", *of), control=(False, True)).assign(
            n=50, n_harmless=50
        )
        for family, of in doses.items()
    ]
    return pd.concat(parts, ignore_index=True)


def _of_checkpoints(case: Case) -> dict[str, Drawing]:
    pairs = list(itertools.combinations(case.systems, 2)) or [(case.systems[0], "base")]

    def by_layer(measures: Mapping[str, float], **keys: Sequence[Any]) -> pd.DataFrame:
        table = case.rows(measures, pair=pairs, layer=range(6), **keys)
        return table.assign(a=[a for a, _ in table["pair"]], b=[b for _, b in table["pair"]])

    ends, ceilings = {"low": 0.3, "high": 0.6}, {"ceiling_a": 0.9, "ceiling_b": 0.92}
    beside = {"ceiling": 0.9, "corrected": 0.6, "harmless_floor": 0.1, "random_high": 0.05}
    cosines = by_layer({"cosine": 0.5, **ends, **ceilings, **beside})
    angles = by_layer(
        {"angle": 40.0, "low": 30.0, "high": 50.0, "random_low": 70.0, **ceilings}, index=(1, 2, 3)
    )
    steps = {"next_layer_a": 0.9, "next_layer_b": 0.92, "class_floor": 0.2, "floor_high": 0.1}
    cka = by_layer({"cka": 0.7, **ends, **steps})
    measures = {"drop": 3.0, "low": 2.0, "high": 4.0, "kl": 0.1, "base": 5.0}
    floors = {"harmless_floor": 0.3, "harmless_max": 0.5, "random_floor": 0.1, "random_max": 0.2}
    everyone = tuple(dict.fromkeys(name for pair in pairs for name in pair))
    transfer = case.rows(measures | floors, source=everyone, target=everyone).assign(n=50, layer=5)
    return {
        "cosines_by_layer": lambda: plots.cosines_by_layer(cosines, layer=3),
        "angles_by_layer": lambda: plots.angles_by_layer(angles, layer=3),
        "cka_by_layer": lambda: plots.cka_by_layer(cka, layer=3),
        "cosine_matrix": lambda: plots.cosine_matrix(cosines, layer=3),
        "transfer_matrix": lambda: plots.transfer_matrix(transfer),
    }


def _of_experiments(case: Case) -> dict[str, Drawing]:
    found = {
        name: case.filled(table, "q", "rank", "n_examples")
        for name, table in region_tables.tables(layers=8).items()
    }
    tradeoff = case.filled(region_tables.tradeoff(), "p", "q", "r_u", "r_s", "share")
    names = {"base": case.name, "tuned": f"{case.name}+tuned", "control": f"{case.name}+control"}
    separation = case.filled(anatomy_tables.separation())
    shapes = ladder_tables.SHAPES
    survival = ladder_tables.survival(
        [f"{system}+{shape}" for system, shape in zip(case.systems, itertools.cycle(shapes), strict=False)],
        shapes,
    )
    harmful = case.filled(survival[survival["label"] == "harmful"])
    return {
        "tradeoff_figure": lambda: plots.tradeoff_figure(tradeoff, "set_difference", name=case.name),
        "freezing_figure": lambda: plots.freezing_figure(found["freezing"]),
        "jaccard_heatmap": lambda: plots.jaccard_heatmap(
            found["structure"], found["structure"]["method"].iloc[0]
        ),
        "links_figure": lambda: plots.links_figure(found["links"]),
        "attack_figure": lambda: plots.attack_figure(
            found["attacks"].assign(
                system=[case.systems[k % len(case.systems)] for k in range(len(found["attacks"]))]
            )
        ),
        "separation_figure": lambda: plots.separation_figure(separation, names),
        "rank_figure": lambda: plots.rank_figure(separation, names),
        "survival_figure": lambda: plots.survival_figure(
            harmful, {system: system for system in dict.fromkeys(harmful["system"])}
        ),
    }


def _several(case: Case) -> dict[str, go.Figure]:
    """The figures of whole runs, which are drawn together."""
    aucs = dict.fromkeys(("auc", "auc_shuffled", "auc_length", "auc_untrained", "auc_reversed"), 0.6) | {
        "low": 0.5,
        "high": 0.7,
        "auc_labels_low": 0.4,
        "auc_labels_high": 0.6,
    }
    said = {
        "refusals": 20.0,
        "readable": 40.0,
        "unparsed": 3.0,
        "yes": 0.5,
        "yes_reversed": 0.3,
        "both_yes": 0.1,
    }
    cells = case.rows(
        aucs | said, system=case.systems, form=("logit", "text"), judge_arm=ARMS, response_arm=ARMS
    )
    compared = case.rows(
        {"change": -0.4, "low": -0.6, "high": -0.2, "p": 0.01, "p_holm": 0.02},
        system=case.systems,
        label=LABELS,
        judge=case.judges,
    ).assign(
        finding="survives", comparisons=4, refused_original=40, n_original=50, refused_edited=20, n_edited=50
    )
    judges = list(itertools.combinations((*case.judges, "another judge"), 2))
    pairs = pd.DataFrame(judges, columns=["judge_a", "judge_b"]).assign(label="harmful", models=4)
    pairs = pairs.assign(pearson=case.of(-0.4), phi=case.of(-0.2), tau=case.of(-0.3))
    published = {"comparisons": compared, "pairs": pairs, "judges": compared}
    found = selfjudge_figures(cells, _calibration(case)) | audit_figures(
        published, primary=case.judges[0], alpha=0.05
    )
    if case.value is None:
        systems = [
            f"{s}+{k}" for s, k in zip(case.systems, itertools.cycle(ladder_tables.SHAPES), strict=False)
        ]
        names = {part: f"{case.name}+{part}" for part in ("base", "tuned", "control")}
        found |= ladder_figures(ladder_tables.tables(systems), layer=3)
        if case.name == LONG or len(case.systems) == 2:
            found |= anatomy_figures(anatomy_tables.tables(), names=names)
            found |= region_figures(region_tables.tables(layers=8), name=case.name)
            found |= lab_figures(lab_tables.all_cases().assign(seed=0), *_claims())
    return found


def _claims() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Bounds and controls of a lab's claims, as many as there are, in three seeds."""
    keys = {"number": range(1, 10), "model": ("ssft", "dpo"), "seed": (0, 1, 2)}
    what = "share of refusals of prompts that the tuning never saw"
    table = CASES["plain"].rows({"value": 0.123, "low": -1.25, "high": 2.5}, **keys).assign(what=what)
    return (
        table.assign(bound="at least 0.9", state="not measurable"),
        table.assign(control="permuted labels", beyond="no"),
    )
