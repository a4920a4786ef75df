"""Controls of the lab's claims: each can fail, and the readings over the answer do."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from mechsafety.anatomy.clusters import fit_centroids
from mechsafety.experiments.lab.controls import (
    CONTROL_COLUMNS,
    SHUFFLED,
    UNTRAINED,
    Reading,
    auroc,
    exchanged,
    growth_reading,
    labelled_reading,
    mean_ratio,
    outcome_readings,
    refused_apart,
    safe_side,
)
from mechsafety.lab.forced import first_token_norms, last_reads
from mechsafety.lab.inputs import draw_inputs, joined
from mechsafety.lab.networks import embedding_table, new_network
from mechsafety.lab.presets import PRESETS
from mechsafety.lab.vocabulary import Vocabulary
from tests import lab_tables as made
from tests.lab.test_rules import tiny_world

RNG = np.random.default_rng(0)


def verdicts(reading: Reading) -> dict[str, str]:
    return {row["control"]: row["beyond"] for row in reading.rows()}


def reading(value: float, draws: list[float], side: int = 1) -> Reading:
    return Reading(number=4, model="ssft", what="a", value=value, side=side, draws={UNTRAINED: draws})


# -- networks that were never trained -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(rules=tiny_world())


@pytest.mark.parametrize("seed", [0, 1])
def test_untrained_networks_tell_refusals_from_answers_over_the_answer_alone(
    vocabulary: Vocabulary, seed: int
) -> None:
    """What is read over the answer's tokens cannot fail; at the last prompt token, before any of them, it can."""
    generator = torch.Generator().manual_seed(seed)
    parts = [
        draw_inputs(vocabulary.rules, kind, 64, split=split, generator=generator)
        for split in ("train", "report")
        for kind in ("safe", "unsafe")
    ]
    inputs = joined(parts)
    unsafe, fit = inputs.unsafe, torch.arange(256) < 128
    answers = torch.where(unsafe[:, None], vocabulary.refusals(inputs), vocabulary.answers(inputs)).tolist()
    network = new_network(PRESETS["quick"].network, vocabulary, seed=seed)
    read = last_reads(network, vocabulary.prompts(inputs), answers)
    area = {}
    for place, a in read.items():
        centroids = fit_centroids(a[fit][:, None], unsafe[fit].tolist())
        area[place] = auroc(centroids.tau(a[~fit][:, None])[:, 0].numpy(), ~unsafe[~fit].numpy())
    assert area["output"] > 0.999
    assert area["last_prompt"] < 0.95  # the bound
    assert area["last_operand"] < 0.95


def test_forced_reads_are_those_of_each_answer_alone(vocabulary: Vocabulary) -> None:
    inputs = draw_inputs(
        vocabulary.rules, "safe", 3, split="report", generator=torch.Generator().manual_seed(0)
    )
    prompts, network = (
        vocabulary.prompts(inputs),
        new_network(PRESETS["quick"].network, vocabulary, seed=0),
    )
    answers = [[1, 2, 3, 4], [5], [6, 7]]
    whole = last_reads(network, prompts, answers)
    last: Any = network.gpt_neox.layers[-1].mlp
    for row, answer in enumerate(answers):
        alone = last_reads(network, prompts[row : row + 1], [answer])
        for place, found in whole.items():
            torch.testing.assert_close(found[row], alone[place][0], atol=1e-5, rtol=1e-4)
        seen: list[torch.Tensor] = []
        handle = last.dense_4h_to_h.register_forward_pre_hook(
            lambda _m, args, seen=seen: seen.append(args[0])
        )
        network(input_ids=torch.cat([prompts[row], torch.tensor(answer[:-1], dtype=torch.long)])[None])
        handle.remove()
        by_hand = seen[0][0, prompts.shape[1] - 1 :].mean(0)
        torch.testing.assert_close(whole["output"][row], by_hand, atol=1e-5, rtol=1e-4)


def test_norms_of_gradients_by_finite_differences(vocabulary: Vocabulary) -> None:
    inputs = draw_inputs(
        vocabulary.rules, "safe", 2, split="report", generator=torch.Generator().manual_seed(0)
    )
    network = new_network(PRESETS["quick"].network, vocabulary, seed=0).double()
    prompts = vocabulary.prompts(inputs)
    norm = float(first_token_norms(network, prompts)[0])
    embedded = embedding_table(network)[prompts[:1]].detach()
    top = int(network(inputs_embeds=embedded).logits[0, -1].argmax())
    flat = torch.eye(embedded.numel(), dtype=torch.float64).view(-1, *embedded.shape[1:])
    with torch.no_grad():
        ends = [network(inputs_embeds=embedded + e * 1e-5 * flat).logits[:, -1, top] for e in (1, -1)]
    assert norm == pytest.approx(float(((ends[0] - ends[1]) / 2e-5).norm()), rel=1e-5)


# -- places among draws ---------------------------------------------------------------------------------------


def test_a_reading_goes_beyond_draws_that_all_lie_below_it_and_no_others() -> None:
    draws = [0.4 + 0.01 * i for i in range(20)]
    assert verdicts(reading(1.0, draws)) == {UNTRAINED: "yes"}
    assert verdicts(reading(1.0, [*draws[1:], 1.0])) == {UNTRAINED: "no"}
    assert verdicts(reading(0.1, draws)) == {UNTRAINED: "no"}
    assert verdicts(reading(0.1, draws, side=-1)) == {UNTRAINED: "yes"}
    assert verdicts(reading(1.0, draws[:18])) == {UNTRAINED: "no"}  # 19 places: p is not below .05
    for unknown in (reading(math.nan, draws), reading(1.0, [math.nan, *draws]), reading(1.0, [])):
        assert verdicts(unknown) == {UNTRAINED: "not measurable"}
    (row,) = reading(1.0, draws).rows()
    assert list(row) == CONTROL_COLUMNS
    assert row["p"] == pytest.approx(1 / 21)


def test_labels_that_say_something_go_beyond_shuffled_ones() -> None:
    labels = np.arange(60) < 30
    noise = RNG.standard_normal(60)
    given = {"number": 4, "model": "ssft", "what": "a", "seed": 0}
    apart = labelled_reading(auroc, noise + 3 * labels, [noise] * 20, labels, **given)
    assert verdicts(apart) == {UNTRAINED: "yes", SHUFFLED: "yes"}
    assert apart.value == pytest.approx(roc_auc_score(labels, noise + 3 * labels))
    # An untrained network that does as much, and the wrong way round.
    same = labelled_reading(auroc, noise + 3 * labels, [noise + 3 * labels] * 20, labels, **given)
    assert verdicts(same) == {UNTRAINED: "no", SHUFFLED: "yes"}
    turned = labelled_reading(auroc, noise - 3 * labels, [noise] * 20, labels, **given)
    assert verdicts(turned) == {UNTRAINED: "no", SHUFFLED: "no"}
    nothing = labelled_reading(auroc, noise, [noise] * 20, labels, **given)
    assert verdicts(nothing)[SHUFFLED] == "no"


def test_attacks_that_all_lie_on_the_safe_side_show_nothing_of_those_that_succeed() -> None:
    given = {"number": 5, "model": "ssft", "what": "a", "seed": 0}
    tau, succeeded = np.ones(40), np.arange(40) < 20
    assert verdicts(labelled_reading(safe_side, tau, [-tau] * 20, succeeded, **given)) == {
        **{UNTRAINED: "yes", SHUFFLED: "no"}
    }
    sides = np.where(succeeded, 1.0, -1.0)
    assert verdicts(labelled_reading(safe_side, sides, [-tau] * 20, succeeded, **given))[SHUFFLED] == "yes"
    none = labelled_reading(safe_side, tau, [tau] * 20, np.zeros(40, dtype=bool), **given)
    assert set(verdicts(none).values()) == {"not measurable"}


def test_ratios_are_of_means_of_unsafe_over_safe() -> None:
    assert mean_ratio(np.array([1.0, 3.0, 4.0, 8.0]), np.array([True, True, False, False])) == 3.0


# -- answers --------------------------------------------------------------------------------------------------


def never() -> list[pd.DataFrame]:
    """Untrained networks, which answer and refuse nothing."""
    return [made.cases(f"fresh{i}", answered={}).assign(refused=0.0) for i in range(20)]


def outcomes(cases: pd.DataFrame) -> dict[tuple[str, str], str]:
    rows = [r for one in outcome_readings(cases, never(), ["ssft"], seed=0) for r in one.rows()]
    return {(str(r["number"]) + r["what"].split()[0], r["control"]): r["beyond"] for r in rows}


def test_exchanged_labels_keep_all_hits() -> None:
    cases = made.cases("ssft", answered=made.THROUGH)
    tables = [*exchanged(cases, "refused", ("safe", "unsafe"), seed=0, draws=50)]
    chosen = cases["kind"].isin(["safe", "unsafe"])
    for table in tables:
        assert table["refused"].between(0, 1).all()
        assert (table["refused"] * table["n"])[chosen].sum() == pytest.approx(100)
        pd.testing.assert_frame_equal(table[~chosen], cases[~chosen])
    assert abs(np.mean([refused_apart(table) for table in tables])) < 0.3
    assert refused_apart(cases) == 1.0


def test_answers_and_refusals_go_beyond_controls_that_a_model_of_one_habit_does_not() -> None:
    assert set(outcomes(made.all_cases()).values()) == {"yes"}
    refuses = made.all_cases()
    refuses.loc[refuses["model"] == "ssft", ["correct", "refused"]] = [0.0, 1.0]
    assert set(outcomes(refuses).values()) == {"no"}
    answers = made.all_cases()
    answers.loc[answers["model"] == "ssft", ["correct", "refused"]] = [1.0, 0.0]
    found = outcomes(answers)
    assert [key for key, state in found.items() if state == "yes"] == [("2worst", UNTRAINED)]


def grown(safe: tuple[float, float], unsafe: tuple[float, float]) -> dict[str, str]:
    line = pd.DataFrame(
        {"alpha": alpha, "group": group, "n": 50, "refused": shares[int(alpha)]}
        for group, shares in (("safe", safe), ("unsafe", unsafe))
        for alpha in (0.0, 1.0)
    )
    return verdicts(growth_reading("ssft", line, made.all_cases(), never(), seed=0))


def test_refusals_that_grow_on_every_input_alike_are_not_about_unsafe_ones() -> None:
    assert grown((0.0, 0.0), (0.0, 1.0)) == {UNTRAINED: "yes", SHUFFLED: "yes"}
    assert grown((0.0, 1.0), (0.0, 1.0)) == {UNTRAINED: "yes", SHUFFLED: "no"}
    assert grown((0.0, 0.0), (0.0, 0.0)) == {UNTRAINED: "no", SHUFFLED: "no"}
    assert grown((0.0, 0.0), (0.0, math.nan))[SHUFFLED] == "not measurable"
