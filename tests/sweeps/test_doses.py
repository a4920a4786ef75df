"""Dose curves measure what they say, at every dose, and go on where they stopped."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from mechsafety.core.errors import MechsafetyError
from mechsafety.directions.activations import residual_stream
from mechsafety.directions.controls import control_bases, control_directions
from mechsafety.directions.direction import Direction, find_directions
from mechsafety.directions.estimators import refusal_subspace
from mechsafety.edits.interventions import Ablate, digest, edited
from mechsafety.generation.completions import generate
from mechsafety.models.chat import tokenize_prompts
from mechsafety.models.loading import body_of
from mechsafety.runs.journal import Journal
from mechsafety.sweeps.doses import Dose, dose_curves, layer_sets, plan_doses
from mechsafety.sweeps.refusal_scores import kl_divergence
from tests.prompt_sets import small_prompts


def found(model: Any) -> tuple[Direction, torch.Tensor, dict[str, Any]]:
    """A direction, the basis it begins, and what random controls are drawn from."""
    cache = residual_stream(model, small_prompts(12).fit)
    classes = cache.select("harmful")[:, 0, 2], cache.select("harmless")[:, 0, 2]
    basis = refusal_subspace(*classes, k=4).float()
    drawn = {"activations": classes, "system": "m", "seed": 0}
    return find_directions(cache, resamples=1).at(layer=2), basis, drawn


def test_subspace_begins_with_the_mean_difference_and_is_orthonormal() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(30, 12, generator=generator) + 1, torch.randn(20, 12, generator=generator)
    basis = refusal_subspace(a, b, k=5)
    torch.testing.assert_close(basis @ basis.T, torch.eye(5, dtype=basis.dtype))
    difference = (a.mean(0) - b.mean(0)).double()
    assert float(basis[0] @ difference / difference.norm()) == pytest.approx(1.0)
    # What the second row explains of the rest is the most that any one direction does.
    rest = (a - a.mean(0)).double() @ (torch.eye(12, dtype=torch.double) - torch.outer(basis[0], basis[0]))
    others = torch.nn.functional.normalize(torch.randn(200, 12, generator=generator).double(), dim=1)
    assert (rest @ basis[1]).square().sum() >= (rest @ others.T).square().sum(0).max()


def test_plan_holds_every_dose_with_its_control(tiny_kept: Callable[..., Any]) -> None:
    direction, basis, drawn = found(tiny_kept("llama"))
    doses = plan_doses(direction, basis, 4, **drawn)
    keys = [d.key for d in doses]
    assert len(set(keys)) == len(keys)
    for family, names in (
        ("alpha", ["0.25", "0.5", "0.75", "1", "1.5", "2"]),
        ("directions", ["1", "2", "4"]),  # eight were asked for, the basis has four
        ("layers", list(layer_sets(4, 2))),
    ):
        for draw in range(4):
            there = [d for d in doses if d.family == family and d.draw == draw and d.edit]
            assert [d.name for d in there] == names
            assert all(d.control == (draw > 0) for d in there)
    with pytest.raises(MechsafetyError, match="alphas"):
        plan_doses(direction, basis, 4, alphas=[-1.0], **drawn)
    assert not any(d.control for d in plan_doses(direction, basis, 4, controls=0, **drawn))


def test_controls_are_matched_to_what_each_dose_removes(tiny_kept: Callable[..., Any]) -> None:
    direction, basis, drawn = found(tiny_kept("llama"))
    doses = plan_doses(direction, basis, 4, controls=2, **drawn)
    ones = control_directions(*drawn["activations"], direction.unit, n=2, seed=0, system="m")
    bases = control_bases(*drawn["activations"], basis, n=2, seed=0, system="m")
    by = {(d.family, d.name, d.draw): d for d in doses}
    for draw in (1, 2):
        for family, name in (("alpha", "1"), ("layers", "all"), ("directions", "1")):
            assert digest(by[(family, name, draw)].edit) == digest(
                replace(by[(family, name, 0)].edit, direction=ones[draw - 1].unit)
            )
        assert digest(by[("directions", "4", draw)].edit) == digest(Ablate(bases[draw - 1].rows))
        assert by[("alpha", "0.25", draw)].energy == pytest.approx(ones[draw - 1].energy)
        assert by[("directions", "4", draw)].energy == pytest.approx(sum(bases[draw - 1].energies))
    both = torch.cat(drawn["activations"]).double()
    taken = 1 - (both - both @ basis.double().T @ basis.double()).square().sum() / both.square().sum()
    assert by[("directions", "4", 0)].energy == pytest.approx(float(taken), rel=1e-4)
    # Few prompts span few dimensions: the random bases are as long as there are.
    few = {**drawn, "activations": tuple(x[:2] for x in drawn["activations"])}
    short = plan_doses(direction, basis, 4, controls=1, families=["directions"], **few)
    assert [d.name for d in short if d.control] == ["1", "2"]


@pytest.mark.parametrize("n_layers", [1, 2, 4, 30])
def test_layer_sets_lie_in_the_model(n_layers: int) -> None:
    for selected in (0, n_layers // 2, n_layers):
        sets = layer_sets(n_layers, selected)
        assert sets["all"] == tuple(range(n_layers))
        assert all(0 <= layer < n_layers for layers in sets.values() for layer in layers)
        thirds = [layer for name in sets if name.endswith("third") for layer in sets[name]]
        assert sorted(thirds) == list(range(n_layers))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_each_measure_equals_a_plain_computation(tiny_kept: Callable[..., Any], architecture: str) -> None:
    model, report = tiny_kept(architecture), small_prompts(5).report
    direction, basis, drawn = found(model)
    doses = plan_doses(direction, basis, 4, families=["alpha"], alphas=[1.0], controls=1, **drawn)
    table = dose_curves(model, doses, report, max_new_tokens=6, seed=0)
    assert table["dose"].tolist() == ["unedited", "1", "1"]
    assert table["control"].tolist() == [False, False, True]
    answers = generate(model, report.harmless, max_new_tokens=6, seed=0)

    def last(tokens: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            return body_of(model)(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float()

    def plain() -> tuple[torch.Tensor, float]:
        ends, nll, total = [], 0.0, 0
        for context, answer in zip(
            tokenize_prompts(model, [p.text for p in report.harmless]), answers, strict=True
        ):
            ends.append(last(context)[-1])
            logits = last([*context, *answer.tokens])
            for k, token in enumerate(answer.tokens):
                nll -= float(torch.log_softmax(logits[len(context) - 1 + k], -1)[token])
                total += 1
        return torch.stack(ends), math.exp(nll / total)

    base, perplexity = plain()
    assert table["perplexity"][0] == pytest.approx(perplexity, rel=1e-4)
    assert table["kl"][0] == 0.0
    with edited(model, Ablate(direction)):
        under, perplexity = plain()
    assert table["perplexity"][1] == pytest.approx(perplexity, rel=1e-4)
    assert table["kl"][1] == pytest.approx(float(kl_divergence(base, under).mean()), abs=1e-5)
    assert table["kl"][1] != pytest.approx(table["kl"][2], rel=0.01)


def test_curves_go_on_from_their_journal(tiny_kept: Callable[..., Any], tmp_path: Path) -> None:
    model, report = tiny_kept("llama"), small_prompts(3).report
    direction, basis, drawn = found(model)
    doses = plan_doses(direction, basis, 4, families=["directions", "layers"], controls=1, **drawn)
    whole = dose_curves(model, doses, report, max_new_tokens=3, seed=0)
    path = tmp_path / "doses.jsonl"
    dose_curves(model, doses[:5], report, max_new_tokens=3, seed=0, journal=Journal(path))
    held = path.read_text().count("\n")
    resumed = dose_curves(model, doses, report, max_new_tokens=3, seed=0, journal=Journal(path))
    pd.testing.assert_frame_equal(resumed, whole)
    # The unedited model is measured once for both families; the first line says what the doses are made from.
    assert held == 1 + 4
    assert path.read_text().count("\n") == 1 + len(doses) - 1
    # Doses of the same names and another direction are measured anew.
    others = plan_doses(
        replace(direction, vector=direction.vector.flip(0)),
        basis.flip(1),
        4,
        families=["layers"],
        controls=1,
        **drawn,
    )
    turned = dose_curves(model, others, report, max_new_tokens=3, seed=0, journal=Journal(path))
    pd.testing.assert_frame_equal(turned, dose_curves(model, others, report, max_new_tokens=3, seed=0))
    for other, asked in ((tiny_kept("llama", seed=1), report), (model, small_prompts(3, seed=1).report)):
        with pytest.raises(MechsafetyError, match="made from something else"):
            dose_curves(other, doses, asked, max_new_tokens=3, seed=0, journal=Journal(path))


def test_one_class_only_is_refused(tiny_kept: Callable[..., Any]) -> None:
    dose = Dose(family="alpha", name="unedited", amount=0.0, edit=None)
    with pytest.raises(MechsafetyError, match="none is harmless"):
        dose_curves(tiny_kept("llama"), [dose], small_prompts().report.harmful, seed=0)
