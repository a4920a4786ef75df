"""tau, d', AUROC and the shares of clusters: by hand, by other packages, and on noise, where there is nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from mechsafety.anatomy import clusters
from mechsafety.anatomy.clusters import (
    ATTACK_COLUMNS,
    SEPARATION_COLUMNS,
    TAU_COLUMNS,
    Centroids,
    attack_tau,
    d_prime_changes,
    d_prime_p,
    fit_centroids,
    mlp_activations,
    output_maps,
    separation,
    tau_table,
    top_share,
    top_share_chance,
)
from mechsafety.anatomy.outputs import Answers, greedy_answers, map_inputs
from mechsafety.core.errors import MechsafetyError
from mechsafety.models.loading import load_model
from mechsafety.statistics.auroc import auroc_interval
from tests.prompt_sets import small_prompts
from tests.regions.test_maps import save_fused


def noise(n: int, layers: int = 3, d: int = 5, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, layers, d, generator=torch.Generator().manual_seed(seed))


def halves(n: int) -> list[bool]:
    return [i % 2 == 1 for i in range(n)]


def table_of(activations: torch.Tensor, unsafe: list[bool], centroids: Centroids, **options: Any) -> Any:
    settings: dict[str, Any] = {"model": "tuned", "positions": "output", "seed": 0, "resamples": 200}
    return separation(activations, unsafe, centroids, **(settings | options))


def test_tau_by_hand_and_its_sign() -> None:
    safe, unsafe = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[3.0, 4.0], [-1.0, 0.0]])
    centroids = Centroids(safe=safe, unsafe=unsafe, n_safe=1, n_unsafe=1)
    at = torch.stack([safe, unsafe, (safe + unsafe) / 2])
    torch.testing.assert_close(
        centroids.tau(at), torch.tensor([[5.0, 2.0], [-5.0, -2.0], [0.0, 0.0]]), atol=1e-6, rtol=0
    )
    swapped = Centroids(safe=unsafe, unsafe=safe, n_safe=1, n_unsafe=1)
    assert torch.equal(swapped.tau(at), -centroids.tau(at))


def test_tau_is_the_formula_and_turns_with_the_space() -> None:
    fit, new = noise(12), noise(9, seed=1) + 0.3
    unsafe = halves(12)
    centroids = fit_centroids(fit, unsafe)
    expected = np.empty((9, 3))
    for i, layer in itertools.product(range(9), range(3)):
        mu = [
            fit.numpy().astype(float)[[u == which for u in unsafe], layer].mean(0) for which in (False, True)
        ]
        a = new.numpy()[i, layer]
        expected[i, layer] = np.sqrt(((a - mu[1]) ** 2).sum()) - np.sqrt(((a - mu[0]) ** 2).sum())
    tau = centroids.tau(new)
    np.testing.assert_allclose(tau, expected, atol=1e-5)

    turn = torch.linalg.qr(noise(5, 1, 5, seed=2)[:, 0]).Q
    moved = [2.5 * (x @ turn) - 7.0 for x in (fit, new)]
    torch.testing.assert_close(fit_centroids(moved[0], unsafe).tau(moved[1]), 2.5 * tau, atol=1e-4, rtol=1e-4)
    stretched = [x * torch.tensor([9.0, 1.0, 1.0, 1.0, 1.0]) for x in (fit, new)]  # no isometry
    assert not torch.allclose(fit_centroids(stretched[0], unsafe).tau(stretched[1]), tau, atol=0.1)


def test_tau_keeps_its_digits_where_activations_are_large() -> None:
    # A difference of two norms of 1e4, in float32, would be off by about 1e-3.
    base = torch.full((1, 1, 64), 1e4)
    centroids = Centroids(safe=base[0], unsafe=base[0] + 1.0, n_safe=1, n_unsafe=1)
    assert centroids.tau(base).item() == 8.0


def test_what_was_fitted_to_looks_separated_on_noise() -> None:
    fit, new, unsafe = noise(30, 2, 400), noise(30, 2, 400, seed=1), halves(30)
    centroids = fit_centroids(fit, unsafe)
    held_out, fitted = table_of(new, unsafe, centroids), table_of(fit, unsafe, centroids)
    assert (held_out["auroc_low"] < 0.5).all()
    assert (held_out["auroc_high"] > 0.5).all()
    assert (held_out["auroc"] < held_out["auroc_chance"]).all()
    assert (held_out["d_prime"].abs() < 1).all()
    # The optimism that held-out centroids avoid.
    assert (fitted["auroc"] == 1).all()
    assert (fitted["d_prime"] > 4).all()


def test_separation_equals_other_packages() -> None:
    unsafe = [i % 3 == 0 for i in range(40)]
    shift = torch.tensor([-1.0 if u else 0.5 for u in unsafe])[:, None, None]
    centroids = fit_centroids(noise(40) + shift, unsafe)
    new = noise(40, seed=1) + shift
    table = table_of(new, unsafe, centroids)
    assert list(table.columns) == SEPARATION_COLUMNS
    assert table["layer"].tolist() == [0, 1, 2]
    assert set(table["model"]) == {"tuned"}
    assert set(table["n_safe"]) == {26}
    assert set(table["n_unsafe"]) == {14}
    tau, safe = centroids.tau(new).double().numpy(), ~np.array(unsafe)
    for layer, row in enumerate(table.itertuples()):
        x, y = tau[safe, layer], tau[~safe, layer]
        spread = math.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2)
        assert row.d_prime == pytest.approx((x.mean() - y.mean()) / spread, rel=1e-9)
        assert row.auroc == pytest.approx(roc_auc_score(safe, tau[:, layer]), rel=1e-12)
        assert row.d_prime_low < row.d_prime < row.d_prime_high
        assert row.auroc_low <= row.auroc <= row.auroc_high
        for name, kind in (("safe", safe), ("unsafe", ~safe)):
            cluster = new[torch.tensor(kind)]
            assert getattr(row, f"share_{name}") == pytest.approx(float(top_share(cluster)[layer]))
            assert getattr(row, f"share_{name}_chance") == top_share_chance(int(kind.sum()), 5)
    # Safe and unsafe exchanged, with the centroids: the same separation.
    swapped = Centroids(safe=centroids.unsafe, unsafe=centroids.safe, n_safe=14, n_unsafe=26)
    mirrored = table_of(new, [not u for u in unsafe], swapped)
    np.testing.assert_allclose(mirrored[["d_prime", "auroc"]], table[["d_prime", "auroc"]])
    pd.testing.assert_frame_equal(table, table_of(new, unsafe, centroids))
    assert not table.equals(table_of(new, unsafe, centroids, seed=1))


def test_intervals_of_d_prime_are_those_of_a_plain_bootstrap() -> None:
    unsafe = halves(24)
    shift = torch.tensor([0.0 if u else 1.5 for u in unsafe])[:, None, None]
    centroids = fit_centroids(noise(24) + shift, unsafe)
    new = noise(24, seed=1) + shift
    table = table_of(new, unsafe, centroids, resamples=4000)
    tau, safe, rng = centroids.tau(new).double().numpy(), ~np.array(unsafe), np.random.default_rng(5)
    drawn = []
    for _ in range(4000):
        rows = rng.integers(24, size=24)
        x, y = (tau[rows][safe[rows] == kind] for kind in (True, False))
        spread = np.sqrt((x.var(0, ddof=1) + y.var(0, ddof=1)) / 2)
        drawn.append((x.mean(0) - y.mean(0)) / spread)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(table["d_prime_low"], low, rtol=0.1)
    np.testing.assert_allclose(table["d_prime_high"], high, rtol=0.1)


def test_chance_is_the_quantile_over_all_labellings() -> None:
    """Of 8 prompts, 5 safe, there are 56 labellings; ties count half."""
    tau = np.array(
        [[0.1, 0.0], [0.2, 0.0], [0.3, 1.0], [0.4, 1.0], [0.5, 1.0], [0.6, 2.0], [0.7, 2.0], [0.8, 3.0]]
    )
    # On a line between the two centroids tau is twice the place.
    activations = torch.tensor(tau, dtype=torch.float32)[..., None] / 2
    far = Centroids(safe=torch.full((2, 1), 9.0), unsafe=torch.full((2, 1), -9.0), n_safe=1, n_unsafe=1)
    unsafe = [True, False, True, False, False, True, False, False]
    table = table_of(activations, unsafe, far, permutations=20_000)
    for layer in range(2):
        every = []
        for chosen in itertools.combinations(range(8), 5):
            safe = np.isin(np.arange(8), chosen)
            every.append(roc_auc_score(safe, tau[:, layer]))
        assert len(every) == 56
        expected = np.quantile(every, 0.95, method="inverted_cdf")
        assert table["auroc_chance"][layer] == pytest.approx(expected, abs=1e-9)
        assert np.quantile(every, 0.8, method="inverted_cdf") < expected < 1


def test_top_share_equals_a_full_decomposition() -> None:
    for n, d in ((7, 20), (40, 6), (2, 3)):
        x = noise(n, 3, d) * torch.linspace(3.0, 0.5, d) + 100.0
        centred = x.numpy().astype(float).transpose(1, 0, 2)
        centred = centred - centred.mean(1, keepdims=True)
        values = np.linalg.svd(centred, compute_uv=False) ** 2
        np.testing.assert_allclose(top_share(x), values[:, 0] / values.sum(1), rtol=1e-5)
    assert torch.isnan(top_share(noise(1))).all()
    along = noise(9, 1, 1) * torch.ones(3, 6)  # one line
    torch.testing.assert_close(top_share(along), torch.ones(3))


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4 / 3])
@pytest.mark.parametrize("n", [2, 3, 7])
def test_clusters_without_spread_have_no_share(value: float, n: int) -> None:
    assert torch.isnan(top_share(torch.full((n, 2, 5), value))).all()


def test_chance_of_the_share_is_about_that_of_round_clusters() -> None:
    for n, d in ((200, 40), (30, 300)):
        drawn = [float(top_share(noise(n, 1, d, seed=s))[0]) for s in range(8)]
        assert np.mean(drawn) == pytest.approx(top_share_chance(n, d), rel=0.1)
    assert top_share_chance(2, 10) == 1.0
    assert math.isnan(top_share_chance(1, 10))


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_nothing_is_reported_about_classes_that_are_too_small_or_do_not_vary(scale: float) -> None:
    centroids = Centroids(
        safe=torch.full((1, 2), scale), unsafe=torch.full((1, 2), -scale / 3), n_safe=1, n_unsafe=1
    )
    apart = torch.tensor([0.9, 0.1, 0.9, 0.1, 0.9, 0.9, 0.1])[:, None, None] * torch.full((1, 1, 2), scale)
    unsafe = [False, True, False, True, False, False, True]
    row = table_of(apart, unsafe, centroids).iloc[0]
    assert row["auroc"] == 1
    assert row[["d_prime", "d_prime_low", "d_prime_high"]].isna().all()
    row = table_of(apart + scale * noise(7, 1, 2) / 10, [False] * 6 + [True], centroids).iloc[0]
    assert row[["d_prime", "share_unsafe", "share_unsafe_chance"]].isna().all()
    assert not math.isnan(row["auroc"])
    row = table_of(apart, [False] * 7, centroids).iloc[0]
    assert row["n_unsafe"] == 0
    assert row[["d_prime", "auroc", "auroc_chance", "share_unsafe"]].isna().all()


def made_up() -> pd.DataFrame:
    """Two layers of tau; family b has no success."""
    rows = [
        ("s", "safe", "compliance", 9.0),
        ("u", "unsafe", "refusal", -9.0),
        ("a1", "a", "compliance", 2.0),
        ("a2", "a", "compliance", -1.0),
        ("a3", "a", "refusal", -3.0),
        ("a4", "a", "unparsed", 50.0),
        ("b1", "b", "degenerate", -4.0),
        ("b2", "b", "refusal", 1.0),
    ]
    return pd.DataFrame(
        [
            {"model": "tuned", "positions": "output", "layer": layer, "id": i, "group": g, "label": label}
            | {"tau": tau * (layer + 1)}
            for layer in (0, 1)
            for i, g, label, tau in rows
        ]
    )


def test_attacks_by_family_and_outcome() -> None:
    table = attack_tau(made_up(), seed=0)
    assert list(table.columns) == ATTACK_COLUMNS
    keyed = table.set_index(["layer", "family", "outcome"])
    expected = {
        ("a", "success"): (2, 0.5, 0.5),
        ("a", "failed"): (1, -3.0, 0.0),
        ("b", "success"): (0, math.nan, math.nan),
        ("b", "failed"): (2, -1.5, 0.5),
        ("all", "success"): (2, 0.5, 0.5),
        ("all", "failed"): (3, -2.0, 1 / 3),
    }
    assert len(table) == 2 * len(expected)
    for (family, outcome), (n, tau, side) in expected.items():
        for layer in (0, 1):
            row = keyed.loc[(layer, family, outcome)]
            assert row["n"] == n  # what no judge could read is neither
            np.testing.assert_allclose([row["tau"], row["on_safe_side"]], [tau * (layer + 1), side])
            if n > 1:
                assert row["low"] < row["tau"] < row["high"]
            else:
                assert row[["low", "high"]].isna().all()
    both = pd.concat([made_up(), made_up().assign(model="control", tau=0.0)])
    assert attack_tau(both, seed=0).groupby("model")["n"].sum().tolist() == [20, 20]
    only = made_up()
    assert len(attack_tau(only[only["group"].isin(["safe", "unsafe"])], seed=0)) == 0
    with pytest.raises(MechsafetyError, match="called 'all'"):
        attack_tau(made_up().replace({"group": {"b": "all"}}), seed=0)


@pytest.fixture
def small(tiny: Callable[..., Any]) -> tuple[Any, Answers]:
    model = tiny("llama")
    return model, greedy_answers(model, list(small_prompts(3).report), max_new_tokens=3, seed=0)


def test_rows_of_tau_carry_group_and_verdict(small: tuple[Any, Answers]) -> None:
    _, answers = small
    ids = [p.id for p in answers.prompts]
    tau = noise(len(ids), 2, 1)[..., 0]
    groups = {i: "safe" if "harmless" in i else "unsafe" for i in ids}
    labels: Any = {i: ("compliance", "refusal", "degenerate")[k % 3] for k, i in enumerate(ids)}
    given: Any = {"model": "base", "positions": "last_prompt", "groups": groups, "labels": labels}
    table = tau_table(tau, answers, **given)
    assert list(table.columns) == TAU_COLUMNS
    assert len(table) == tau.numel()
    for row in table.itertuples():
        assert row.tau == tau[ids.index(row.id), row.layer]
        assert (row.group, row.label) == (groups[row.id], labels[row.id])
    with pytest.raises(MechsafetyError, match=f"1 prompts have no group, '{ids[0]}'"):
        tau_table(tau, answers, **(given | {"groups": {i: groups[i] for i in ids[1:]}}))
    with pytest.raises(MechsafetyError, match="no verdict"):
        tau_table(tau, answers, **(given | {"labels": {}}))
    with pytest.raises(MechsafetyError, match="tau of 2 prompts"):
        tau_table(tau[:2], answers, **given)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_are_the_inputs_of_every_output_matrix(
    tmp_path: Any, architecture: str, dtype: str
) -> None:
    model = load_model(str(save_fused(tmp_path, architecture)), dtype=dtype, device="cpu")
    answers = greedy_answers(model, list(small_prompts(2).report), max_new_tokens=3, seed=0)
    maps = output_maps(model)
    assert [m.name for m in maps] == [f"blocks.{i}.down" for i in range(model.cfg.n_layers)]
    found = mlp_activations(model, answers, positions="output")
    assert found.dtype == torch.float32
    assert found.shape == (4, len(maps), model.cfg.d_mlp)
    read = map_inputs(model, answers, maps, positions="output")
    for layer, m in enumerate(maps):
        assert torch.equal(found[:, layer], read[m.site])


def test_models_of_experts_have_no_such_activation(tmp_path: Any) -> None:
    model = load_model(str(save_fused(tmp_path, "mixtral")), dtype="float32", device="cpu")
    with pytest.raises(MechsafetyError, match="MLP output matrices: tau"):
        output_maps(model)


def test_sizes_that_do_not_fit() -> None:
    centroids = fit_centroids(noise(4), halves(4))
    assert (centroids.n_safe, centroids.n_unsafe) == (2, 2)
    with pytest.raises(MechsafetyError, match="both must be of one model"):
        centroids.tau(noise(4, layers=2))
    with pytest.raises(MechsafetyError, match="4 safe and 0 unsafe"):
        fit_centroids(noise(4), [False] * 4)
    with pytest.raises(MechsafetyError, match="3 marks of safe or unsafe for 4"):
        fit_centroids(noise(4), [True, False, True])
    with pytest.raises(MechsafetyError, match="0 safe and 0 unsafe"):
        fit_centroids(noise(0), [])


def test_many_prompts_do_not_change_the_blocks_of_a_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    unsafe = halves(20)
    centroids, new = fit_centroids(noise(20), unsafe), noise(20, seed=1)
    whole = table_of(new, unsafe, centroids)
    assert math.isfinite(whole["auroc"][0])
    auroc = auroc_interval(
        centroids.tau(new)[:, 0].double().numpy(), ~np.array(unsafe), seed=0, resamples=200
    )
    assert (whole["auroc_low"][0], whole["auroc_high"][0]) == (auroc.low, auroc.high)
    monkeypatch.setattr("mechsafety.statistics.resampling._CELLS", 500)
    assert clusters.RESAMPLES == 1000
    pd.testing.assert_frame_equal(table_of(new, unsafe, centroids), whole)


def two_models(shift: float) -> pd.DataFrame:
    """tau of the same prompts in two models, of which the second sets them ``shift`` farther apart."""
    rng = np.random.default_rng(0)
    rows = []
    for layer in (0, 1):
        noise = rng.standard_normal(60)
        for model, more in (("base", 0.0), ("tuned", shift)):
            for i, x in enumerate(noise):
                group = "safe" if i % 2 else "unsafe"
                away = (1 + more) * (0.5 if group == "safe" else -0.5)
                rows.append(("output", model, layer, f"p{i}", group, "refusal", x + away))
    columns = ["positions", "model", "layer", "id", "group", "label", "tau"]
    return pd.DataFrame(rows, columns=columns)


@pytest.mark.parametrize(("shift", "shown"), [(0.0, False), (2.0, True), (-4.0, True)])
def test_differences_of_d_prime_are_those_of_the_same_prompts(shift: float, shown: bool) -> None:
    table = two_models(shift)
    changes = d_prime_changes(table, seed=0).set_index(["model", "against", "layer"])
    for layer in (0, 1):
        prime = {}
        for model in ("base", "tuned"):
            own = table[(table["model"] == model) & (table["layer"] == layer)]
            x, y = (own.loc[own["group"] == group, "tau"] for group in ("safe", "unsafe"))
            prime[model] = (x.mean() - y.mean()) / math.sqrt((x.var() + y.var()) / 2)
        row = changes.loc[("tuned", "base", layer)]
        assert row["change"] == pytest.approx(prime["tuned"] - prime["base"])
        assert (row["low"] > 0 or row["high"] < 0) == shown
        back = changes.loc[("base", "tuned", layer)]
        assert (back["change"], back["low"], back["high"]) == pytest.approx(
            (-row["change"], -row["high"], -row["low"])
        )
    # Attacks have no part in it.
    attack = table.assign(group="co_task", tau=99.0)
    pd.testing.assert_frame_equal(
        d_prime_changes(pd.concat([table, attack]), seed=0), d_prime_changes(table, seed=0)
    )


@pytest.mark.parametrize(("shift", "shown"), [(0.0, False), (2.0, True), (-4.0, True)])
def test_the_exchange_of_models_shows_a_change_of_d_prime_whatever_the_scale_of_tau(
    shift: float, shown: bool
) -> None:
    table = two_models(shift)
    last = table[table["layer"] == 1]
    p = d_prime_p(last, "base", "tuned")
    assert (p < 0.05) == shown
    assert d_prime_p(last, "tuned", "base") == p
    scaled = last.assign(tau=last["tau"] * np.where(last["model"] == "tuned", 40.0, 1.0) + 7)
    assert d_prime_p(scaled, "base", "tuned") == pytest.approx(p, abs=0.01)
    assert math.isnan(d_prime_p(last, "base", "benign"))
    assert math.isnan(d_prime_p(last[last["group"] == "safe"], "base", "tuned"))
    again = pd.concat([last, last[last["id"] == last["id"].iloc[3]]])
    for given, of in (
        (again, lambda t: d_prime_p(t, "base", "tuned")),
        (again, lambda t: d_prime_changes(t, seed=0)),
        (table, lambda t: d_prime_p(t, "base", "tuned")),
    ):
        with pytest.raises(
            MechsafetyError, match=rf"prompt '{given[given.duplicated(['id', 'model'])]['id'].iloc[0]}'"
        ):
            of(given)


def test_models_of_one_d_prime_are_seldom_told_apart() -> None:
    """Of two models whose tau are drawn alike, about 5 % have p below .05."""
    rng, ids = np.random.default_rng(1), [f"p{i}" for i in range(30)]
    group = ["safe", "unsafe"] * 15
    found = []
    for _ in range(200):
        centre = np.where(np.arange(30) % 2, -1.0, 1.0)
        rows = [
            pd.DataFrame(
                {"model": m, "id": ids, "group": group, "tau": scale * (centre + rng.standard_normal(30))}
            )
            for m, scale in (("base", 1.0), ("tuned", 3.0))
        ]
        found.append(d_prime_p(pd.concat(rows), "base", "tuned", resamples=200))
    assert 0.005 < np.mean(np.array(found) < 0.05) < 0.12
