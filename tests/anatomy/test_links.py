"""dW beside the refusal direction and the safety-critical weights: planted links, absent ones, and chance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mechsafety.anatomy.links import (
    ABLATION_COLUMNS,
    LINK_COLUMNS,
    ablation_table,
    choose_direction,
    direction_links,
    energy_along,
    set_links,
)
from mechsafety.anatomy.readings import outcome_rows, prompt_groups
from mechsafety.anatomy.weight_changes import WeightChange, weight_changes
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Label, Response, Verdict
from mechsafety.directions.activations import residual_stream
from mechsafety.directions.direction import Direction, find_directions
from mechsafety.edits.interventions import Ablate
from mechsafety.regions.attribution import score_weights
from mechsafety.regions.maps import linear_maps
from mechsafety.regions.pruning import top_entries
from tests.anatomy.test_weight_changes import gaussian, with_change
from tests.prompt_sets import small_prompts
from tests.regions.test_links import EXAMPLES
from tests.regions.test_overlap import attribution_of


def unit(seed: int = 0, d: int = 32) -> Tensor:
    return torch.nn.functional.normalize(gaussian(d, seed=seed), dim=0)


def values(table: Any, layer: int, kind: str) -> dict[str, float]:
    found = table[(table["layer"] == layer) & (table["kind"] == kind)]
    return dict(zip(found["what"], found["value"], strict=True))


# -- the direction ----------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_planted_direction_is_found_in_dw_and_another_is_not(
    tiny: Callable[..., Any], architecture: str, dtype: str
) -> None:
    base, u, name = tiny(architecture, dtype=dtype), unit(), "blocks.1.down"
    linear = next(m for m in linear_maps(base) if m.name == name)
    planted = torch.outer(u, gaussian(linear.d_in, seed=1))
    changes = with_change(base, tiny(architecture, dtype=dtype), name, planted)
    table = direction_links(changes, u, seed=0)
    assert tuple(table.columns) == LINK_COLUMNS
    assert set(table["kind"]) == {"o", "down"}
    assert len(table) == 5 * 8
    on = values(table, 1, "down")
    exact = 1e-3 if dtype == "float32" else 0.02
    assert on["energy"] == pytest.approx(1, abs=exact)
    assert on["cosine_first"] == pytest.approx(1, abs=exact)
    assert on["cosine_top"] == pytest.approx(1, abs=exact)
    assert on["energy_base"] < 0.2
    row = table[(table["what"] == "energy_random") & (table["layer"] == 1) & (table["kind"] == "down")].iloc[
        0
    ]
    assert row["low"] < row["chance"] == 1 / 32 < row["high"] < on["energy"]
    assert row["value"] == pytest.approx(1 / 32, rel=0.2)
    off = unit(seed=3)
    off = off - (off @ u) * u
    beside = values(direction_links(changes, off / off.norm(), seed=0), 1, "down")
    assert beside["energy"] < exact
    assert beside["cosine_first"] < 0.1
    untouched = values(table, 0, "o")
    assert math.isnan(untouched["energy"])
    assert math.isnan(untouched["cosine_first"])
    assert math.isnan(untouched["cosine_top"])
    assert untouched["energy_base"] > 0


def test_the_shares_are_the_formula(tiny: Callable[..., Any]) -> None:
    changes = weight_changes(tiny("llama"), tiny("llama", seed=1))
    u = unit(seed=5)
    table = direction_links(changes, 7 * u, seed=0)
    change = next(c for c in changes if c.name == "blocks.2.o")
    left, s, _ = torch.linalg.svd(change.matrix(), full_matrices=False)
    found = values(table, 2, "o")
    assert found["energy"] == pytest.approx(float((u @ left * s).square().sum() / s.square().sum()), rel=1e-4)
    assert found["cosine_first"] == pytest.approx(abs(float(u @ left[:, 0])), rel=1e-4)
    assert found["cosine_top"] == pytest.approx(float((u @ left[:, :16]).norm()), rel=1e-4)
    # A full basis holds all of the energy: the shares of d_model orthonormal directions sum to one.
    assert float(energy_along(change.matrix(), torch.eye(32)).sum()) == pytest.approx(1, rel=1e-5)


def test_unrelated_directions_are_at_chance(tiny: Callable[..., Any]) -> None:
    changes = weight_changes(tiny("llama"), tiny("llama", seed=1))
    tables = [direction_links(changes, unit(seed=seed), seed=0).set_index("what") for seed in range(30)]
    for what in ("energy", "cosine_first"):
        found = torch.tensor([t.loc[what, "value"].mean() for t in tables])
        chance = float(tables[0].loc[what, "chance"].iloc[0])
        assert abs(float(found.mean()) - chance) < 4 * float(found.std()) / 30**0.5
    squares = torch.tensor([(t.loc["cosine_top", "value"] ** 2).mean() for t in tables])
    assert abs(float(squares.mean()) - 0.5) < 4 * float(squares.std()) / 30**0.5  # 16 of 32 dimensions


def test_directions_that_do_not_fit(tiny: Callable[..., Any]) -> None:
    changes = weight_changes(tiny("llama"), tiny("llama", seed=1))
    with pytest.raises(MechsafetyError, match="31 entries"):
        direction_links(changes, unit(d=31), seed=0)
    with pytest.raises(MechsafetyError, match="2 directions"):
        direction_links(changes, torch.eye(32)[:2], seed=0)
    with pytest.raises(MechsafetyError, match="nothing is written"):
        direction_links([c for c in changes if c.kind == "q"], unit(), seed=0)


# -- sets of weights --------------------------------------------------------------------------------


def test_a_change_planted_in_the_safety_set_is_found_there(tiny: Callable[..., Any]) -> None:
    base, name = tiny("llama"), "blocks.1.up"
    linear = next(m for m in linear_maps(base) if m.name == name)
    scores = attribution_of(linear_maps(base), seed=0)
    top = top_entries(scores.snip(name), 5, "matrix").long()
    change = torch.zeros(linear.d_out * linear.d_in)
    change[top] = 1e-3 * gaussian(len(top))
    (inside,) = (
        c
        for c in with_change(base, tiny("llama"), name, change.view(linear.d_out, linear.d_in))
        if c.name == name
    )
    table = set_links([inside], scores, q=5).set_index("what")
    assert list(table.index) == ["snip", "wanda", "magnitude"]
    assert table.loc["snip", "value"] == pytest.approx(1, abs=1e-4)
    assert table.loc["snip", "chance"] == pytest.approx(0.05, abs=1e-3)
    assert table.loc["snip", "n"] == len(top)
    assert table.loc["magnitude", "value"] < 0.3
    (outside,) = (
        c
        for c in with_change(base, tiny("llama"), name, gaussian(linear.d_out, linear.d_in))
        if c.name == name
    )
    assert set_links([outside], scores, methods=("snip",), q=5).set_index("what").loc["snip", "value"] < 0.1
    unchanged = WeightChange(base=linear, tuned=linear)
    assert set_links([unchanged], scores)["value"].isna().all()


def test_sets_of_a_real_attribution(tiny: Callable[..., Any]) -> None:
    base, tuned = tiny("gpt2"), tiny("gpt2", seed=1)
    changes, scores = weight_changes(base, tuned), score_weights(tuned, EXAMPLES)
    table = set_links(changes, scores, q=10)
    assert tuple(table.columns) == LINK_COLUMNS
    assert len(table) == 3 * len(changes)
    row = table[(table["what"] == "wanda") & (table["layer"] == 2) & (table["kind"] == "o")].iloc[0]
    change = next(c for c in changes if c.name == "blocks.2.o")
    places = top_entries(scores.wanda(change.tuned), 10, "matrix").long()
    energy = change.matrix().square().flatten()
    assert row["value"] == pytest.approx(float(energy[places].sum() / energy.sum()), rel=1e-5)
    with pytest.raises(MechsafetyError, match="q is 0"):
        set_links(changes, scores, q=0)
    with pytest.raises(MechsafetyError, match="another model"):
        set_links(weight_changes(tiny("llama"), tiny("llama", seed=1)), scores)


# -- the behaviour ----------------------------------------------------------------------------------


class FirstLetter:
    """Calls answers refusals, compliance or degenerate by the length of their text, which ablation changes."""

    name = "letters"

    def __call__(self, responses: Any) -> list[Verdict]:
        return [Verdict(id=r.id, judge=self.name, label=self.label(r)) for r in responses]

    def label(self, response: Response) -> Label:
        kinds: tuple[Label, ...] = ("refusal", "compliance", "degenerate")
        return kinds[len(response.text) % 3]


def test_the_chosen_layer_is_the_one_whose_ablation_sets_most_answers_free(tiny: Callable[..., Any]) -> None:
    model, prompts = tiny("llama"), small_prompts(6)
    settings: Any = {"judge": FirstLetter(), "max_new_tokens": 4, "seed": 0}
    found = choose_direction(model, prompts.fit, prompts.validation, **settings)
    directions = find_directions(residual_stream(model, prompts.fit), seed=0)
    groups = {"unsafe": list(prompts.validation.harmful)}

    def freed(layer: int) -> tuple[float, float]:
        (row,) = outcome_rows(model, groups, edit=Ablate(directions.at(layer=layer)), **settings)
        return float(row["complied"]), -float(row["refused"])

    shares = {layer: freed(layer) for layer in range(1, 5)}  # at layer 0 the last token is the same in all
    assert shares[found.layer] == max(shares.values())
    assert found.layer == min(layer for layer, share in shares.items() if share == max(shares.values()))
    assert torch.equal(found.vector, directions.at(layer=found.layer).vector)
    assert choose_direction(model, prompts.fit, prompts.validation, layers=[2], **settings).layer == 2
    with pytest.raises(MechsafetyError, match="no layer 9"):
        choose_direction(model, prompts.fit, prompts.validation, layers=[9], **settings)
    with pytest.raises(MechsafetyError, match="differ at none"):
        choose_direction(model, prompts.fit, prompts.validation, layers=[0], **settings)
    with pytest.raises(MechsafetyError, match="no harmful validation prompts"):
        choose_direction(model, prompts.fit, prompts.validation.harmless, **settings)


def test_ablation_stands_beside_that_of_a_random_direction(tiny: Callable[..., Any]) -> None:
    model, groups = tiny("gpt2"), prompt_groups(list(small_prompts(3).report))
    direction = Direction(vector=unit(), layer=2, position=-1, method="mean_difference")
    settings: Any = {"judge": FirstLetter(), "max_new_tokens": 4, "seed": 0}
    table = ablation_table(model, direction, groups, **settings)
    assert tuple(table.columns) == ABLATION_COLUMNS
    assert list(table["state"]) == [s for s in ("tuned", "ablated", "random_ablated") for _ in groups]
    for state, edit in (("tuned", None), ("ablated", Ablate(direction))):
        expected = outcome_rows(model, groups, edit=edit, **settings)
        assert table[table["state"] == state].drop(columns=["state", "layer"]).to_dict("records") == expected
    assert (table["layer"] == 2).all()
    assert ablation_table(model, direction, groups, **settings).equals(table)
