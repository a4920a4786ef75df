"""Checkpoints are compared from parts that survive an interruption, and refused where cosines mean nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from mechsafety import cli
from mechsafety.core.errors import MechsafetyError
from mechsafety.directions.activations import residual_stream
from mechsafety.directions.direction import Directions, cosine, find_directions
from mechsafety.directions.files import load_directions, save_directions
from mechsafety.edits.interventions import Ablate, edited
from mechsafety.experiments import session as sessions
from mechsafety.experiments.comparison import work as checkpoint_work
from mechsafety.experiments.comparison.config import ComparisonConfig
from mechsafety.experiments.comparison.experiment import (
    CheckpointComparison,
    Comparison,
    read_comparison,
    run_comparison,
)
from mechsafety.experiments.comparison.figures import (
    comparison_figures,
    cosine_matrix,
    cosines_by_layer,
)
from mechsafety.experiments.comparison.findings import comparison_findings, transfer_findings
from mechsafety.experiments.running import run_experiment
from mechsafety.experiments.status import run_status
from mechsafety.geometry import transfer
from mechsafety.models.chat import tokenize_prompts
from mechsafety.models.loading import load_model
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.runs.journal import Journal
from mechsafety.sweeps.refusal_scores import refusal_scores
from tests import in_process_ray
from tests.conftest import tiny_config
from tests.prompt_sets import small_prompts, write_csv

Folder = Callable[..., Path]
PROMPTS = small_prompts(12)
OPTIONS: dict[str, Any] = {"seed": 0, "resamples": 20, "k": 2, "dtype": "float32", "device": "cpu"}


def save_adapter(folder: Path, architecture: str = "llama") -> Path:
    """A random LoRA adapter for a tiny model."""
    import warnings

    import peft
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    maps = ["q_proj", "down_proj"] if architecture == "llama" else ["c_attn", "c_proj"]
    lora = peft.LoraConfig(
        r=2, lora_alpha=8, target_modules=maps, init_lora_weights=False, fan_in_fan_out=architecture == "gpt2"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(tiny_config(architecture))
        peft.get_peft_model(model, lora).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module", params=["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def pair(
    request: pytest.FixtureRequest, tiny_folder: Folder, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """A base and its fine-tune."""
    base = tiny_folder(request.param)
    adapter = save_adapter(tmp_path_factory.mktemp("adapter") / request.param, request.param)
    return str(base), f"{base}+{adapter}"


@pytest.fixture(scope="module")
def done(pair: Any, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return run_comparison(pair, PROMPTS, out=tmp_path_factory.mktemp("runs") / "whole", **OPTIONS)


def test_workers_read_the_models_and_ablate_in_them_and_the_tables_are_the_same(
    pair: Any, done: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process_ray.put_in(monkeypatch)
    config = ComparisonConfig(checkpoints=pair, engine="ray", **OPTIONS)
    heard: list[str] = []
    remote = run_experiment(CheckpointComparison(config, PROMPTS), tmp_path / "run", say=heard.append)
    names = [name for name in done.tables if (done.path / f"{name}.parquet").is_file()]
    assert {"cosines", "transfer"} <= {*names}
    for name in names:
        assert (remote.path / f"{name}.parquet").read_bytes() == (done.path / f"{name}.parquet").read_bytes()
    assert remote.manifest["comparison"] == done.manifest["comparison"]
    stages = run_status(remote.path)["stages"]
    assert {stage: stages[stage]["done"] for stage in ("streams", "transfer")} == {
        "streams": 2,
        "transfer": 2,
    }


@pytest.fixture
def saved(tiny: Any, tmp_path: Path) -> Callable[..., str]:
    """``saved("a", seed=1)``: a file of directions of a random tiny model."""

    def make(name: str, architecture: str = "llama", *, seed: int = 0, layers: int = 5) -> str:
        found = find_directions(
            residual_stream(tiny(architecture, seed=seed), PROMPTS.fit), seed=0, resamples=2
        )
        if layers < found.n_layers:
            parts = {
                n: getattr(found, n)[:, :layers]
                for n in ("vectors", "thresholds", "gaps", "stability", "split_half")
            }
            found = Directions(**{**vars(found), **parts})
        found.save(tmp_path / f"{name}.safetensors")
        return str(tmp_path / f"{name}.safetensors")

    return make


# -- what comes out ---------------------------------------------------------------------------------


def test_tables_hold_every_layer_and_pair(done: Comparison, pair: Any) -> None:
    assert done.names == pair
    assert [basis.verdict for basis in done.bases] == ["shared"]
    assert done.bases[0].correlation == pytest.approx(1)
    assert all("hardly refuses" in note for note in done.notes)
    assert {name: len(table) for name, table in done.tables.items()} == {
        "cosines": 5,
        "angles": 10,
        "cka": 5,
        "transfer": 4,
    }
    for name, table in done.tables.items():
        stored = pd.read_csv(done.path / f"{name}.csv")
        pd.testing.assert_frame_equal(stored, pd.read_parquet(done.path / f"{name}.parquet"), atol=1e-12)
        assert list(stored.columns) == list(table.columns)
    again = read_comparison(done.path)
    assert (again.names, again.layer, again.bases) == (done.names, done.layer, done.bases) or all(
        math.isnan(b.threshold) for b in done.bases
    )


def test_numbers_are_those_of_the_models(done: Comparison, pair: Any) -> None:
    found = [
        find_directions(residual_stream(load_model(s, dtype="float32", device="cpu"), PROMPTS.fit), seed=0)
        for s in pair
    ]
    assert done.cosines is not None
    # At layer 0 the last prompt token is the template's: nothing differs, unless positions are embedded.
    assert math.isnan(done.cosines["cosine"][0]) == ("gpt2" not in pair[0])
    expected = cosine(found[0].vectors[0], found[1].vectors[0])[1:]
    torch.testing.assert_close(torch.tensor(done.cosines["cosine"][1:].to_numpy()).float(), expected)
    assert bool((done.cosines["low"][1:] <= done.cosines["cosine"][1:]).all())
    assert bool((done.cosines["high"][1:] >= done.cosines["cosine"][1:]).all())
    assert done.angles is not None
    first = done.angles[done.angles["index"] == 1].set_index("layer")["angle"][1:]
    # The subspaces hold the mean differences, so that their smallest angle is no wider than these's.
    between = torch.rad2deg(torch.arccos(expected.abs()))
    assert all(a <= b + 1e-3 for a, b in zip(first, between.tolist(), strict=True))
    assert done.cka is not None
    assert bool(done.cka["cka"][1:].between(-1, 1).all())
    assert list(done.cka["layer_b"]) == list(done.cka["layer"])


def test_transfer_is_the_fall_of_the_score_under_ablation(done: Comparison, pair: Any) -> None:
    assert done.transfer is not None
    fit, held_out = PROMPTS.fit, PROMPTS.report.harmful
    for target in pair:
        model = load_model(target, dtype="float32", device="cpu")
        rows = done.transfer[done.transfer["target"] == target].set_index("source")
        layer = int(rows["layer"].iloc[0])
        texts = json.loads(rows["refusal_tokens"].iloc[0])
        ids = [model.tokenizer.convert_tokens_to_ids(text) for text in texts]

        def score(ids: list[int] = ids, model: Any = model) -> float:
            total = []
            for sequence in tokenize_prompts(model, [p.text for p in held_out]):
                logits = model(torch.tensor([sequence]))[:, -1]
                total.append(float(refusal_scores(logits, ids)))
            return sum(total) / len(total)

        base = score()
        for source in pair:
            other = load_model(source, dtype="float32", device="cpu")
            vector = find_directions(residual_stream(other, fit), seed=0).vectors[0, layer]
            with edited(model, Ablate(vector)):
                after = score()
            row = rows.loc[source]
            assert row["base"] == pytest.approx(base, abs=1e-3)
            assert row["ablated"] == pytest.approx(after, abs=1e-3)
            assert row["drop"] == pytest.approx(base - after, abs=2e-3)
            assert row["low"] <= row["drop"] <= row["high"]
            assert row["n"] == 12
        assert rows["random_max"].iloc[0] >= rows["random_floor"].iloc[0]
        assert abs(float(rows["drop"][target])) > 1e-3  # the control: something happens


def test_transfer_is_tested_against_the_unedited_model_and_every_control() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(24, generator=generator, dtype=torch.float64)

    def ablation(fall: float) -> transfer.Ablation:
        noise = 0.1 * torch.randn(24, generator=generator, dtype=torch.float64)
        return transfer.Ablation(scores=base - fall + noise, kl=0.0)

    whole, same, large = transfer.Ablation(scores=base, kl=0.0), [ablation(0), ablation(0.2)], ablation(8)
    found = transfer.tests_of(whole, large, same, seed=0)
    assert (found["control_side"], found["p"]) == (-1, pytest.approx(1e-4))
    assert found["control_p"] == pytest.approx(1e-4)
    as_much = transfer.tests_of(whole, ablation(8), [*same, large], seed=0)
    assert as_much["control_p"] > 0.05
    assert transfer.tests_of(whole, ablation(-8), [*same, ablation(-9)], seed=0)["control_p"] == 1
    assert math.isnan(transfer.tests_of(whole, large, [], seed=0)["control_p"])
    assert math.isnan(transfer.tests_of(whole, None, same, seed=0)["p"])


def transferred(**cells: tuple[float, float, int]) -> pd.DataFrame:
    """Two checkpoints a and b: fall of the score, p against the controls and their side, by source and target."""
    rows = []
    for cell, (fall, p, side) in cells.items():
        source, target = cell.split("_")
        rows.append(
            {"source": source, "target": target, "layer": 3, "n": 32, "base": -0.5, "ablated": -0.5 - fall}
            | {"drop": fall, "low": fall - 0.6, "high": fall + 0.6, "p": 1e-4 if abs(fall) > 1 else 0.5}
            | {
                "control_p": p,
                "control_side": side,
                "random_max": 0.4,
                "harmless_max": 1.0,
                "share": fall / 8,
            }
        )
    return pd.DataFrame(rows)


def test_a_negative_score_can_fall_and_the_sign_of_a_score_says_nothing() -> None:
    """Case C1."""
    table = transferred(a_a=(8, 1e-4, -1), b_b=(8, 1e-4, -1), a_b=(6.4, 1e-4, -1), b_a=(5.6, 1e-4, -1))
    said = list(transfer_findings(table, {}))
    assert "2 of 2 ablations of the own direction show a fall in the mean refusal score" in said[0]
    assert any("2 of 2 ablations of the foreign direction show a fall beyond" in s for s in said)
    both = [s for s in comparison_findings({"transfer": table}, layer=3) if "without the direction of a" in s]
    assert "b without the direction of a: a fall in mean refusal score" in both[0]


def test_a_foreign_direction_that_does_no_more_than_random_or_raises_the_score_is_told_so() -> None:
    """Case C2."""
    table = transferred(a_a=(8, 1e-4, -1), b_b=(8, 1e-4, -1), a_b=(6.4, 0.4, -1), b_a=(-2.4, 1e-4, 1))
    said = " ".join(comparison_findings({"transfer": table}, layer=3))
    assert "b without the direction of a: a fall in mean refusal score" in said
    assert (
        "b without the direction of a: a change beyond random and harmless directions (lowest of each) is not shown"
        in said
    )
    assert "a without the direction of b: a rise in mean refusal score" in said
    told = " ".join(transfer_findings(table, {}))
    assert "1 of 2 ablations of the foreign direction show a fall in" in told
    assert "0 of 2 ablations of the foreign direction show a fall beyond" in told
    # Earlier runs hold no tests of the controls, and their intervals decide.
    old = table.drop(columns=["p", "control_p", "control_side"])
    said = " ".join(comparison_findings({"transfer": old}, layer=3))
    assert "whether this goes beyond random and harmless directions (lowest of each) is not tested" in said
    assert "a rise in mean refusal score" in said


def test_the_transfer_layer_separates_best_below_four_fifths() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(20, 11, 6, generator=generator), torch.randn(20, 11, 6, generator=generator)
    vectors = torch.zeros(11, 6)
    vectors[1:, 0] = 1.0
    for layer, gap in ((3, 20.0), (5, 30.0), (8, 90.0)):  # all separate; layer 8 is too late
        a[:, layer, 0] += gap
    assert transfer.transfer_layer(a, b, vectors) == 5
    vectors[5] = 0  # no direction there
    assert transfer.transfer_layer(a, b, vectors) == 3
    assert transfer.transfer_layer(a, b, torch.zeros(11, 6)) is None


def test_controls_have_the_norm_asked_for_and_do_not_separate_harm() -> None:
    harmless = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    made = transfer.controls(harmless, number=3, norm=2.5, seed=1)
    assert len(made) == 6
    assert all(float(v.norm()) == pytest.approx(2.5) for v in made.values())
    assert len(transfer.controls(torch.ones(10, 6), number=3, norm=1.0, seed=1)) == 3


# -- resuming ---------------------------------------------------------------------------------------


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The specs that are loaded while a test runs."""
    seen: list[str] = []

    def load(spec: str, **options: Any) -> Any:
        seen.append(spec)
        return load_model(spec, **options)

    monkeypatch.setattr(sessions, "load_model", load)
    return seen


def equal(a: Comparison, b: Comparison) -> None:
    assert a.tables.keys() == b.tables.keys()
    for name, table in a.tables.items():
        pd.testing.assert_frame_equal(table, b.tables[name])


def test_an_interrupted_comparison_goes_on(
    done: Comparison, pair: Any, tmp_path: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    puts = 0

    class Broken(Journal):
        def put(self, key: str, value: Any) -> None:
            nonlocal puts
            puts += 1
            if puts == 5:
                raise KeyboardInterrupt
            super().put(key, value)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_work, "Journal", Broken)
        with pytest.raises(KeyboardInterrupt):
            run_comparison(pair, PROMPTS, out=tmp_path / "run", **OPTIONS)
    with pytest.raises(MechsafetyError, match="is not finished: give the same command again"):
        read_comparison(tmp_path / "run")
    assert loads == [*pair, pair[0]]
    loads.clear()
    found = run_comparison(pair, PROMPTS, out=tmp_path / "run", **OPTIONS)
    assert loads == list(pair)  # for the transfer only, and the four ablations that were done stay done
    equal(found, done)
    loads.clear()
    equal(run_comparison(pair, PROMPTS, out=tmp_path / "run", **OPTIONS), done)
    assert loads == []


def test_a_lost_part_is_made_again_alone(
    done: Comparison, pair: Any, tmp_path: Path, loads: list[str]
) -> None:
    def some(*measures: str) -> Comparison:
        return run_comparison(pair, PROMPTS, out=tmp_path / "run", measures=measures, **OPTIONS)

    some("cosine", "cka")
    assert loads == list(pair)
    loads.clear()
    # Another measure in the same folder loads nothing again.
    pd.testing.assert_frame_equal(some("angles").angles, done.angles)
    assert loads == []
    (lost,) = (tmp_path / "run" / "parts" / "cosine").rglob("*.parquet")
    lost.unlink()
    pd.testing.assert_frame_equal(some("cosine").cosines, done.cosines)
    assert loads == []
    (first, _) = sorted((tmp_path / "run" / "parts" / "checkpoint").glob("*.json"))
    first.unlink()
    some("cosine")
    assert len(loads) == 1


def test_one_model_is_held_at_a_time(pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import weakref

    alive: list[Any] = []

    def load(spec: str, **options: Any) -> Any:
        gc.collect()
        assert sum(r() is not None for r in alive) == 0
        model = load_model(spec, **options)
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(sessions, "load_model", load)
    run_comparison(pair, PROMPTS, out=tmp_path / "run", measures=["cosine", "transfer"], **OPTIONS)
    assert len(alive) == 4


# -- bases ------------------------------------------------------------------------------------------


def test_unrelated_models_get_cka_and_a_sentence(tiny_folder: Folder, tmp_path: Path) -> None:
    specs = [str(tiny_folder("llama", seed)) for seed in (0, 1)]
    found = run_comparison(specs, PROMPTS, out=tmp_path / "run", **OPTIONS)
    assert list(found.tables) == ["cka"]
    assert [basis.verdict for basis in found.bases] == ["unrelated"]
    note = found.notes[0]
    assert "do not share a residual basis" in note
    assert "so cosine, angles, transfer are left out for this pair, and CKA" in note
    with pytest.raises(MechsafetyError, match=r"do not share a residual basis.*Ask for measures='cka'"):
        run_comparison(specs, PROMPTS, out=tmp_path / "run", measures=["cosine"], **OPTIONS)
    # Asked for together, CKA is given.
    both = run_comparison(specs, PROMPTS, out=tmp_path / "run", measures=["cosine", "cka"], **OPTIONS)
    assert list(both.tables) == ["cka"]


def test_models_of_other_shape_get_cka_by_relative_depth(
    tiny_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests import conftest

    def shallow(architecture: str) -> Any:
        config = tiny_config(architecture)
        config.num_hidden_layers = 2
        return config

    with monkeypatch.context() as patched:
        patched.setattr(conftest, "tiny_config", shallow)
        other = conftest.save_tiny(tmp_path / "shallow")
    found = run_comparison([str(tiny_folder()), str(other)], PROMPTS, out=tmp_path / "run", **OPTIONS)
    assert found.cka is not None
    assert list(zip(found.cka["layer"], found.cka["layer_b"], strict=True)) == [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2)]  # fmt: skip
    assert found.bases[0].verdict == "other shape"


def test_a_third_model_of_other_origin_leaves_the_pair_whole(
    done: Comparison, pair: Any, tiny_folder: Folder, tmp_path: Path
) -> None:
    stranger = str(tiny_folder("gpt2" if "gpt2" in pair[0] else "llama", 1))
    found = run_comparison([*pair, stranger], PROMPTS, out=tmp_path / "run", **OPTIONS)
    assert [basis.verdict for basis in found.bases] == ["shared", "unrelated", "unrelated"]
    assert found.cosines is not None
    pd.testing.assert_frame_equal(found.cosines, done.cosines)
    assert found.cka is not None
    assert len(found.cka) == 15
    assert found.transfer is not None
    assert set(found.transfer["target"]) == set(pair)
    assert sum("do not share a residual basis" in note for note in found.notes) == 2


# -- saved directions -------------------------------------------------------------------------------


def test_saved_directions_are_compared_without_models(
    saved: Callable[..., str], tmp_path: Path, loads: list[str]
) -> None:
    a, b = saved("a"), saved("b", seed=1)
    found = run_comparison([a, b], out=tmp_path / "run", seed=0)
    assert loads == []
    assert list(found.tables) == ["cosines"]
    assert found.names == (a, b)
    assert found.cosines is not None
    expected = cosine(*(load_directions(Path(p)).vectors[0] for p in (a, b)))[1:]
    torch.testing.assert_close(torch.tensor(found.cosines["cosine"][1:].to_numpy()).float(), expected)
    assert found.cosines[["low", "high", "harmless_floor"]].isna().all(axis=None)
    assert bool((found.cosines["random_high"] > 0.2).all())
    assert "must be known" in found.notes[0]
    assert "without prompts they have no interval" in found.notes[1]
    assert list(found.figures()) == ["cosines-by-layer", "cosine-matrix"]


def test_saved_directions_beside_models(saved: Callable[..., str], pair: Any, tmp_path: Path) -> None:
    architecture = "gpt2" if "gpt2" in pair[0] else "llama"
    one = saved("one", architecture)
    found = run_comparison([*pair, one], PROMPTS, out=tmp_path / "run", **OPTIONS)
    assert found.cosines is not None
    mixed = found.cosines[(found.cosines["a"] == pair[0]) & (found.cosines["b"] == one)]
    assert bool((mixed["cosine"][1:] > 0.999).all() or mixed["cosine"].dropna().gt(0.999).all())
    assert found.angles is not None
    assert len(found.angles) == 10  # the models' own pair
    assert found.transfer is not None
    assert set(found.transfer["source"]) == {*pair, one}
    assert set(found.transfer["target"]) == set(pair)
    same = found.transfer[found.transfer["target"] == pair[0]].set_index("source")["drop"]
    assert same[one] == pytest.approx(same[pair[0]], abs=1e-3)


def test_a_file_of_several_models_is_several_checkpoints(
    saved: Callable[..., str], tmp_path: Path, tiny: Any
) -> None:
    paths = [Path(saved("a")), Path(saved("b", seed=1))]
    save_directions([load_directions(p) for p in paths], tmp_path / "both.safetensors")
    found = run_comparison([str(tmp_path / "both.safetensors")], out=tmp_path / "run", seed=0)
    assert len(found.names) == 2
    assert all(name.startswith(f"{tmp_path / 'both.safetensors'}:") for name in found.names)


# -- mistakes ---------------------------------------------------------------------------------------


def only(prompts: PromptSet, **keep: Any) -> PromptSet:
    return PromptSet(tuple(p for p in prompts if all(getattr(p, k) in v for k, v in keep.items())), "mine")


@pytest.mark.parametrize(
    ("specs", "options", "said"),
    [
        (["a"], {}, "1 checkpoint to compare: name two or more"),
        ([], {}, "0 checkpoints to compare"),
        (["a", "b", "a"], {}, "checkpoint 'a' is named twice"),
        (["a", "b"], {"measures": ["angle"]}, "measure angle is not one of cosine, angles, cka, transfer"),
        (["a", "b"], {"measures": []}, "measure (none) is not one of"),
        (["a", "b"], {"prompts": None}, "comparing the model 'a' needs prompts"),
        (["a", "b"], {"limit": 2}, "limit 2: at least 4 prompts of each label"),
        (["a", "b"], {"prompts": only(PROMPTS, split=["report"])}, "no fit prompts in 'mine'"),
        (
            ["a", "b"],
            {"prompts": only(PROMPTS, split=["fit"])},
            "no validation prompts in 'mine': the transfer",
        ),
        (
            ["a", "b"],
            {"prompts": only(PROMPTS, split=["fit", "validation"])},
            "no report prompts in 'mine': the transfer",
        ),
        (
            ["a", "b"],
            {"prompts": only(PROMPTS, label=["harmful"])},
            "on fit prompts harmful and harmless prompts are needed; of these 12 none is harmless",
        ),
        (["a", "none.safetensors"], {}, "directions file 'none.safetensors' does not exist"),
        (["a", "b"], {}, "unknown model 'a'"),
    ],
)
def test_mistakes(tmp_path: Path, specs: list[str], options: dict[str, Any], said: str) -> None:
    arguments = {"prompts": PROMPTS, "out": tmp_path / "run", "seed": 0, **options}
    with pytest.raises(MechsafetyError) as caught:
        run_comparison(specs, **arguments)
    assert said in str(caught.value)


def test_mistakes_with_saved_directions(
    saved: Callable[..., str], tmp_path: Path, tiny_folder: Folder
) -> None:
    a, b, short = saved("a"), saved("b", seed=1), saved("short", layers=3)
    mistakes: list[tuple[list[str], dict[str, Any], str]] = [
        ([a, b], {"measures": ["cka"]}, "measure cka needs the models themselves"),
        ([a, a], {}, "is named twice"),
        ([a, short], {}, "saved directions cannot be compared across shapes"),
        ([str(tiny_folder()), short], OPTIONS, "saved directions cannot be compared across shapes"),
        ([a, b], {"position": -2}, "holds no directions at position -2: its positions are -1"),
        ([a, b], {"layer": 9}, "layer 9 does not exist: these checkpoints' are 0 to 4"),
    ]
    for number, (specs, options, said) in enumerate(mistakes):
        with pytest.raises(MechsafetyError, match=said):
            run_comparison(specs, PROMPTS, out=tmp_path / f"run{number}", **{"seed": 0, **options})


def test_another_configuration_needs_another_folder(pair: Any, done: Comparison) -> None:
    with pytest.raises(MechsafetyError, match=r"another configuration \(k: 2 -> 3\)"):
        run_comparison(pair, PROMPTS, out=done.path, **{**OPTIONS, "k": 3})


def test_too_wide_a_subspace(pair: Any, tmp_path: Path) -> None:
    with pytest.raises(MechsafetyError, match="subspaces of 7 dimensions: k must be 1 to 6"):
        run_comparison(pair, PROMPTS, out=tmp_path / "run", **{**OPTIONS, "k": 7})


# -- figures ----------------------------------------------------------------------------------------


def test_figures_show_the_tables(done: Comparison) -> None:
    figures = done.figures()
    assert list(figures) == ["cosines-by-layer", "cosine-matrix", "angles-by-layer", "cka-by-layer", "transfer-matrix"]  # fmt: skip
    assert done.plot().to_json() == figures["cosines-by-layer"].to_json()
    assert done.cosines is not None
    line = next(t for t in figures["cosines-by-layer"].data if t.name == "cosine, 95 % interval")
    assert list(line.y)[1:] == list(done.cosines["cosine"])[1:]
    at = done.cosines.set_index("layer").loc[done.layer]
    matrix = figures["cosine-matrix"].data[0]
    assert f"{at['cosine']:.2f}" in matrix.text[0][0]
    assert f"{at['ceiling_b']:.2f}" in matrix.text[0][1]
    assert done.transfer is not None
    cells = figures["transfer-matrix"].data[0]
    assert cells.z[-1][0] == done.transfer["drop"][0]
    assert figures["transfer-matrix"].layout.yaxis.ticktext[0] == "control:<br>random"
    assert all(figure.layout.title.text for figure in figures.values())
    shown = done._repr_html_()
    assert shown.count("<table") == 4
    assert "<b>Compare</b>" in shown


def many(n: int) -> pd.DataFrame:
    """Cosines of n checkpoints, with nothing known of them but the cosine."""
    rows = [
        {"layer": layer, "a": f"m{i}", "b": f"m{j}", "cosine": 0.5, "random_high": 0.1}
        for i in range(n)
        for j in range(i + 1, n)
        for layer in range(3)
    ]
    missing = ("low", "high", "ceiling_a", "ceiling_b", "ceiling", "corrected", "harmless_floor")
    return pd.DataFrame(rows).assign(**dict.fromkeys(missing, math.nan))


def test_a_cut_of_many_pairs_is_reported() -> None:
    figure = cosines_by_layer(many(6), layer=1)
    assert "The first 10 of 15 pairs." in figure.layout.title.subtitle.text
    assert "pairs" not in cosines_by_layer(many(3), layer=1).layout.title.subtitle.text
    matrix = cosine_matrix(many(6), layer=1)
    assert len(matrix.data[0].z) == len(matrix.layout.xaxis.ticktext) == 6


def test_undefined_numbers_are_drawn_under_the_same_titles(done: Comparison) -> None:
    """A title states no result, so that it is that of any table."""
    assert cosine_matrix(many(2).assign(cosine=math.nan), layer=1).data[0].text[0][0] == "undefined"
    assert done.transfer is not None
    assert done.angles is not None
    assert done.cka is not None
    empty = {
        **{"cosines": many(2).assign(cosine=math.nan), "angles": done.angles.assign(angle=math.nan)},
        **{"cka": done.cka.assign(cka=math.nan), "transfer": done.transfer.assign(share=math.nan)},
    }
    for name, figure in comparison_figures(empty, layer=done.layer).items():
        assert figure.layout.title.text == done.figures()[name].layout.title.text
    assert comparison_figures({}, layer=0) == {}


# -- the command ------------------------------------------------------------------------------------


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.main, [str(a) for a in arguments])


def test_the_command_prints_tables_and_writes_figures(
    pair: Any, done: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_csv(PROMPTS, tmp_path / "prompts.csv")
    line = [*pair, "--prompts", path, "--out", tmp_path / "run", "--resamples", 20, "--k", 2, "--dtype", "float32"]  # fmt: skip
    result = call("compare", *line, "--measure", "cosine", "--measure", "cka", "--layer", 2)
    assert result.exit_code == 0, result.output
    assert "cosines, layer 2" in result.stdout
    assert str(tmp_path / "run") in result.stdout
    assert "mechsafety study --systems" in result.stdout
    assert (tmp_path / "run" / "figures" / "cka-by-layer.html").is_file()
    facts = json.loads(call("compare", *line, "--measure", "cosine", "--layer", 2, "--json").stdout)
    assert facts["cosines"][0]["layer"] == 2
    assert facts["bases"][0]["verdict"] == "shared"
    assert len(facts["figures"]) == 2


def test_the_command_on_saved_directions(saved: Callable[..., str], tmp_path: Path) -> None:
    result = call("compare", saved("a"), saved("b", seed=1), "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "must be known" in result.stdout
    assert "mechsafety compare with the models themselves" in result.stdout


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a", "1 checkpoint to compare"),
        ("a a", "checkpoint 'a' is named twice"),
        ("a b --measure angle", "measure angle is not one of cosine, angles, cka, transfer"),
        ("a b --format gif", "figure format 'gif' is not one of"),
        ("a b --limit 1", "limit 1: at least 4"),
        ("a b --prompts nowhere", "unknown prompt set 'nowhere'"),
        ("a b", "unknown model 'a'"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path: Path, line: str, said: str) -> None:
    result = call("compare", *line.split(), "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert said in result.stderr
    as_json = call("compare", *line.split(), "--out", tmp_path / "run", "--json")
    assert said in json.loads(as_json.stdout)["error"]
