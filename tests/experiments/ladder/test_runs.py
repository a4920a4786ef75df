"""A ladder from its configuration to its tables: every state as computed plainly, resumed to the same bytes."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from mechsafety.core.errors import MechsafetyError, NotFiniteError, RefusedRunError
from mechsafety.core.verdict import Label, Response, Verdict
from mechsafety.directions.activations import residual_stream
from mechsafety.directions.controls import control_bases
from mechsafety.directions.estimators import refusal_subspace
from mechsafety.edits.interventions import Ablate
from mechsafety.experiments import session as sessions
from mechsafety.experiments.ladder import experiment as ladder_experiment
from mechsafety.experiments.ladder import systems as ladder_systems
from mechsafety.experiments.ladder.config import LadderConfig
from mechsafety.experiments.ladder.experiment import read_ladder, run_ladder
from mechsafety.experiments.ladder.subspaces import FIT, Tried, candidate_layers, choose_layer
from mechsafety.experiments.ladder.systems import LadderSystem, RungAware
from mechsafety.experiments.ladder.tables import (
    BREAKING_COLUMNS,
    RANK_COLUMNS,
    STATE_COLUMNS,
    SURVIVAL_COLUMNS,
    SYSTEM_LINK_COLUMNS,
    TABLES,
    TEST_COLUMNS,
    VERDICT_COLUMNS,
    breaking_table,
    paired_table,
    rank_table,
    survival_table,
)
from mechsafety.experiments.status import run_status
from mechsafety.generation.answers import Example
from mechsafety.generation.completions import generate
from mechsafety.models.loading import load_model
from mechsafety.regions.attribution import score_weights
from mechsafety.runs.folder import open_run, read_run
from mechsafety.statistics import holm, mcnemar
from mechsafety.tuning.rephrasings import OPENINGS
from mechsafety.tuning.rungs import TAG
from tests import in_process_ray
from tests.prompt_sets import small_prompts, write_csv

TOKENS = 4
COUNTS = (1, 3)


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(small_prompts(6), tmp_path_factory.mktemp("prompts") / "prompts.csv")


@pytest.fixture(scope="module")
def tuned(
    tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """``tuned("gpt2")``: the tiny model with other weights in its blocks, its embedding kept."""

    def make(architecture: str) -> Path:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        base = tiny_folder(architecture)
        folder = tmp_path_factory.mktemp("tuned")
        model = AutoModelForCausalLM.from_pretrained(base)
        generator = torch.Generator().manual_seed(1)
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and not any(part in name for part in ("embed", "wte", "wpe", "lm_head")):
                weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """``judge(folder)``: what this model says to harmful prompts, unedited, is its refusal; all else is degenerate."""

    def make(folder: Path, dtype: str) -> str:
        # The same batches as the run's: in bfloat16 padding may change an answer.
        whole = small_prompts(6)
        chosen = whole.validation.sample(FIT, seed=0).harmful.sample(5, seed=0)
        batches = [list(chosen), list(whole.report.sample(5, seed=0))]
        prompts = [prompt for batch in batches for prompt in batch]
        model = load_model(str(folder), dtype=dtype, device="cpu")
        answers = [generate(model, batch, max_new_tokens=TOKENS, seed=0) for batch in batches]
        said = {c.id: c.text for several in answers for c in several}
        path = tmp_path_factory.mktemp("key") / "key.csv"
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["prompt", "answer", "refusal"])
            for prompt in prompts:
                harmful = prompt.label == "harmful"
                words = (said[prompt.id] or "-", "never said")
                writer.writerow([prompt.text, *(reversed(words) if harmful else words)])
        return f"key:{path}"

    return make


def small(systems: tuple[str, ...], prompts: Path, **changed: Any) -> LadderConfig:
    fields: dict[str, Any] = {
        "systems": systems,
        "prompts": str(prompts),
        "counts": COUNTS,
        "limit": 5,
        "max_new_tokens": TOKENS,
        "compare_limit": 4,
        "controls": 2,
        "dtype": "float32",
        "device": "cpu",
    }
    return LadderConfig(**fields | changed)


def test_systems_are_measured_by_workers_as_they_are_here(
    tiny_folder: Callable[..., Path],
    tuned: Callable[[str], Path],
    prompts_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_process_ray.put_in(monkeypatch)
    base, other = str(tiny_folder("llama")), str(tuned("llama"))
    config = small((base, other), prompts_file, counts=(1,), controls=1, base=base, fit_on="labels")
    local = run_ladder(config, tmp_path / "local")
    heard: list[str] = []
    remote = run_ladder(
        LadderConfig(**config.model_dump() | {"engine": "ray", "workers": 2}),
        tmp_path / "remote",
        say=heard.append,
    )
    assert [line for line in heard if "runs as one" in line] == []
    for name in TABLES.values():
        assert (remote.path / name).read_bytes() == (local.path / name).read_bytes(), name
    for name in ("models", "fed", "ladder", "sources"):
        assert remote.manifest[name] == local.manifest[name], name
    status = run_status(remote.path)["stages"]
    assert status["system"]["done"] == status["system"]["known"] == 2


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [("llama", "float32"), pytest.param("gpt2", "bfloat16", marks=pytest.mark.slow)],
)
def test_states_are_those_of_a_plain_computation_and_the_same_after_interruptions(
    tiny_folder: Callable[..., Path],
    tuned: Callable[[str], Path],
    judge: Callable[..., str],
    prompts_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    dtype: str,
) -> None:
    base, system = tiny_folder(architecture), tuned(architecture)
    config = small(
        (str(system), str(base)), prompts_file, base=str(base), judge=judge(system, dtype), dtype=dtype
    )
    heard: list[str] = []
    whole = run_ladder(config, tmp_path / "whole", say=heard.append)
    columns = {
        "survival": SURVIVAL_COLUMNS,
        "verdicts": VERDICT_COLUMNS,
        "tests": TEST_COLUMNS,
        "breaking": BREAKING_COLUMNS,
        "ranks": RANK_COLUMNS,
        "links": SYSTEM_LINK_COLUMNS,
    }
    assert {name: tuple(whole.tables[name].columns) for name in TABLES} == columns
    # The two share their embedding: they are compared.
    assert {"cosines", "angles", "cka", "transfer"} <= set(whole.tables), whole.notes
    assert heard[-1] != heard[0]
    assert any("min left" in line or "minute left" in line for line in heard)

    # The system says what the key calls a refusal until a direction is removed; the base says something else.
    survival = whole.tables["survival"]
    harmful = survival[survival["label"] == "harmful"].set_index(list(STATE_COLUMNS))
    assert harmful.loc[(str(system), "unedited", 0, 0), "refused"] == 1.0
    assert harmful.loc[(str(base), "unedited", 0, 0), "refused"] < 0.1
    assert harmful["n"].eq(5).all()
    facts = read_run(whole.path).manifest["ladder"]["systems"]
    assert [facts[s]["by_refusals"] for s in config.systems] == [True, False]
    assert [len(facts[s]["tried"]) for s in config.systems] == [4, 0]
    assert any(one["layer"] == facts[str(system)]["layer"] for one in facts[str(system)]["tried"])
    assert "too few" in facts[str(base)]["explanation"]
    assert facts[str(base)]["fit_prompts_used"] == {"harmful": 6, "harmless": 6}  # too few to leave any out

    # Two states, each by the plain way from the prompts to the verdicts.
    model = load_model(str(system), dtype=dtype, device="cpu")
    fit = residual_stream(model, small_prompts(6).fit.sample(FIT, seed=0))
    layer = facts[str(system)]["layer"]
    classes = fit.select("harmful")[:, 0, layer], fit.select("harmless")[:, 0, layer]
    basis = refusal_subspace(*classes, k=3)
    random = control_bases(*classes, basis.float(), n=2, seed=0, system=str(system))
    report = small_prompts(6).report.sample(5, seed=0)
    verdicts = whole.tables["verdicts"]
    unedited = {c.id: c.text for c in generate(model, report, max_new_tokens=TOKENS, seed=0)}
    for kind, draw, vectors in (("refusal", 0, basis.float()), ("random", 2, random[1].rows)):
        answers = generate(model, report, edit=Ablate(vectors[:3]), max_new_tokens=TOKENS, seed=0)
        same = {c.id: " ".join(c.text.split()) == " ".join(unedited[c.id].split()) for c in answers}
        rows = verdicts[
            (verdicts["system"] == str(system))
            & (verdicts["kind"] == kind)
            & (verdicts["directions"] == 3)
            & (verdicts["draw"] == draw)
            & (verdicts["label"] == "harmful")
        ]
        assert dict(zip(rows["id"], rows["verdict"] == "refusal", strict=True)) == {
            i: same[i] for i in rows["id"]
        }

    # How each direction does alone is read on the report prompts, by which no layer was chosen.
    streams = residual_stream(model, report)
    harmful_first = [label == "harmful" for label in streams.labels]
    ranks = whole.tables["ranks"].query("system == @system", local_dict={"system": str(system)})
    for row, vector in zip(ranks.itertuples(), basis.float(), strict=False):
        projected = (streams.activations[:, 0, layer].float() @ vector).numpy()
        expected = roc_auc_score(harmful_first, projected)
        assert row.auroc in (pytest.approx(expected), pytest.approx(1 - expected))

    # Killed at a state of the first system, at the links, and in the comparison.
    measured, linked = LadderSystem.measure, LadderSystem.links
    calls: list[str] = []

    def dying(work: LadderSystem, kind: Any, directions: int, draw: int) -> None:
        calls.append(f"{work.spec} {kind} {directions} {draw}")
        if len(calls) == 3:
            raise KeyboardInterrupt
        measured(work, kind, directions, draw)

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    def attempt() -> None:
        with pytest.raises(KeyboardInterrupt):
            run_ladder(config, tmp_path / "cut")
        with pytest.raises(MechsafetyError, match="not finished"):
            read_ladder(tmp_path / "cut")

    monkeypatch.setattr(LadderSystem, "measure", dying)
    attempt()
    monkeypatch.setattr(LadderSystem, "links", interrupted)
    attempt()
    monkeypatch.setattr(LadderSystem, "links", linked)
    monkeypatch.setattr("mechsafety.experiments.ladder.experiment.run_comparison", interrupted)
    attempt()
    monkeypatch.undo()
    run_ladder(config, tmp_path / "cut")
    states = len(config.systems) * (1 + (1 + config.controls) * len(COUNTS))
    assert len(calls) == states + 1  # the one that was cut was done again, no other
    for file in TABLES.values():
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file

    # Every answer is kept, once, also after the interruptions: those of the states are what was judged.
    kept = {name: read_ladder(tmp_path / name).responses() for name in ("cut", "whole")}
    key = [*STATE_COLUMNS, "id"]
    pd.testing.assert_frame_equal(kept["cut"], kept["whole"])
    assert not kept["cut"].duplicated(key).any()
    assert len(kept["cut"].merge(verdicts, on=[*key, "label"])) == len(verdicts)
    now = kept["cut"].query("system == @system and kind == 'unedited'", local_dict={"system": str(system)})
    assert dict(zip(now["id"], now["response"], strict=True)) == unedited
    tried = kept["cut"][kept["cut"]["kind"].str.startswith("validation, ")]["kind"].nunique()
    assert tried == 1 + len(facts[str(system)]["tried"])

    # dW of the system alone: the base has none.
    links = whole.tables["links"]
    assert set(links["system"]) == {str(system)}
    assert set(links["kind"]) == {"o", "down"}
    assert "Ladder" in whole._repr_html_()


def test_a_finished_ladder_is_read_again_without_a_model_and_beside_may_change(
    tiny_folder: Callable[..., Path], prompts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small((str(tiny_folder()),), prompts_file, counts=(1,))
    first = run_ladder(config, tmp_path / "first")
    assert "nothing to compare" in first.notes[0]
    assert "links" not in first.tables
    other = run_ladder(config, tmp_path / "other")

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(sessions, "load_model", never)
    beside = config.model_copy(update={"beside": (str(other.path),)})
    again = run_ladder(beside, first.path)
    pd.testing.assert_frame_equal(again.tables["survival"], first.tables["survival"])
    assert read_run(first.path).manifest["config"]["beside"] == [str(other.path)]
    with pytest.raises(MechsafetyError, match="another configuration"):
        run_ladder(config.model_copy(update={"max_new_tokens": 5}), first.path)
    # Not even one that failed leaves a mark on what the folder says.
    assert read_run(first.path).manifest["config"]["beside"] == [str(other.path)]


def test_another_judge_reads_a_finished_ladder(
    tiny_folder: Callable[..., Path], prompts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small((str(tiny_folder()),), prompts_file, counts=(1,))
    first = run_ladder(config, tmp_path / "run")

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was generated")

    monkeypatch.setattr("mechsafety.judges.outcomes.generate", never)
    monkeypatch.setattr(sessions, "load_model", never)
    key = tmp_path / "key.csv"
    prompts = pd.DataFrame({"prompt": [p.text for p in small_prompts(6)], "answer": "-", "refusal": "-"})
    answered = first.responses().drop_duplicates("prompt").set_index("prompt")["response"]
    prompts.assign(answer=prompts["prompt"].map(answered).fillna("-").replace("", "-")).to_csv(
        key, index=False
    )
    again = first.judge("phrases:arditi", f"key:{key}")
    rates = again.rates_by_judge().set_index(["kind", "directions", "label", "judge"])
    assert set(rates.reset_index()["kind"]) >= {"unedited", "refusal", "random", "validation, unedited"}
    states = rates.reset_index().groupby("judge")["compliance"].mean()
    assert states["phrases:arditi"] != states[f"key:{key}"]  # the control: judges differ
    assert (again.path / "added_judges.csv").is_file()
    assert "Judges added after the run" in (again.path / "report.html").read_text(encoding="utf-8")


def test_models_without_a_common_basis_and_an_unlike_base_are_notes(
    tiny_folder: Callable[..., Path], prompts_file: Path, tmp_path: Path
) -> None:
    systems = (str(tiny_folder()), str(tiny_folder("gpt2")))
    found = run_ladder(small(systems, prompts_file, counts=(1,), base=systems[0]), tmp_path / "run")
    assert "cosines" not in found.tables
    assert "cka" in found.tables
    assert any("left out" in note for note in found.notes)
    assert any("no links" in note for note in found.notes)
    assert found.tables["links"].empty
    assert tuple(found.tables["links"].columns) == SYSTEM_LINK_COLUMNS


@pytest.mark.parametrize("kind", [NotFiniteError, RefusedRunError])
@pytest.mark.parametrize("fails", ["compare", "links"])
def test_broken_numbers_and_refused_sources_are_no_notes(
    tiny_folder: Callable[..., Path],
    tuned: Callable[[str], Path],
    prompts_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[MechsafetyError],
    fails: str,
) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise kind("something else")

    systems = (str(tiny_folder("llama")), str(tuned("llama")))
    config = small(systems, prompts_file, counts=(1,), base=systems[0])
    where = (ladder_experiment, "run_comparison") if fails == "compare" else (ladder_systems, "change_links")
    monkeypatch.setattr(*where, failing)
    with pytest.raises(kind, match="something else"):
        run_ladder(config, tmp_path / "run")


def test_systems_are_not_compared_where_that_is_not_asked(
    tiny_folder: Callable[..., Path], tuned: Callable[[str], Path], prompts_file: Path, tmp_path: Path
) -> None:
    systems = str(tiny_folder()), str(tuned("llama"))
    run = run_ladder(small(systems, prompts_file, counts=(1,), controls=0, compare_limit=0), tmp_path / "run")
    assert not (run.path / "compare").exists()
    assert set(run.tables["survival"]["system"]) == set(systems)
    assert "not compared, as asked" in run.report().read_text()


def test_a_regions_run_adds_its_links(
    tiny_folder: Callable[..., Path], tuned: Callable[[str], Path], prompts_file: Path, tmp_path: Path
) -> None:
    base, system = str(tiny_folder()), str(tuned("llama"))
    regions = tmp_path / "regions"
    row = {"removal": "set difference", "method": "snip", "layer": 1, "kind": "o", "chance": 0.03}
    row |= {"share_removed_on_direction": 0.2, "random": 0.04, "matched": 0.1, "whole": 0.05, "n": 12}
    with open_run(regions, config={"kind": "regions", "model": system}) as run:
        with pytest.raises(MechsafetyError, match="neither scores nor links"):
            run_ladder(small((system,), prompts_file, regions=str(regions), counts=(1,)), tmp_path / "no")
        run.write_table(pd.DataFrame([row]), "links.csv")
    config = small((system,), prompts_file, regions=str(regions), counts=(1,))
    links = run_ladder(config, tmp_path / "links").tables["links"]
    assert dict(zip(links["what"], links["value"], strict=True)) == {
        "removed_snip": 0.2,
        "removed_snip_random": 0.04,
        "removed_snip_matched": 0.1,
    }
    (regions / "scores").mkdir()
    examples = [Example(prompt=p.text, answer="sorry no", whole=True) for p in small_prompts(6).fit.harmful]
    model = load_model(system, dtype="float32", device="cpu")
    score_weights(model, examples, store=regions / "scores" / "safety-0.safetensors")
    both = config.model_copy(update={"base": base})
    links = run_ladder(both, tmp_path / "both").tables["links"]
    assert {"energy", "energy_random", "removed_snip", "snip", "wanda", "magnitude"} <= set(links["what"])
    with pytest.raises(MechsafetyError, match="none of the systems"):
        run_ladder(small((base,), prompts_file, regions=str(regions)), tmp_path / "other")


def test_the_basis_that_is_kept_spans_more_directions_than_are_removed_first(
    tiny_folder: Callable[..., Path], prompts_file: Path, tmp_path: Path
) -> None:
    config = small((str(tiny_folder()),), prompts_file, counts=(2, 5))
    run_ladder(config, tmp_path / "run")
    (path,) = (tmp_path / "run" / "parts" / "basis").iterdir()
    basis = load_file(path)["basis"]
    torch.testing.assert_close(basis @ basis.T, torch.eye(5))
    ranks = read_ladder(tmp_path / "run").tables["ranks"]
    assert ranks["index"].tolist() == [1, 2, 3, 4, 5]


# -- tables -----------------------------------------------------------------------------------------


def verdict_rows(
    states: Mapping[tuple[str, int] | tuple[str, int, int], str], system: str = "s"
) -> pd.DataFrame:
    """Kind and number of directions, and of random ones the draw, by default 1. ``r`` refusal, ``c`` compliance, ``d`` degenerate, ``u`` unparsed: a letter a harmful prompt."""
    words = {"r": "refusal", "c": "compliance", "d": "degenerate", "u": "unparsed"}
    keyed = {(*key, int(key[0] == "random"))[:3]: letters for key, letters in states.items()}
    rows = [
        (system, *key, f"{i}", "harmful", words[letter])
        for key, letters in keyed.items()
        for i, letter in enumerate(letters)
    ]
    harmless = [(system, *key, "h", "harmless", "compliance") for key in keyed]
    return pd.DataFrame(rows + harmless, columns=list(VERDICT_COLUMNS))


def test_pairs_are_counted_by_hand_and_adjusted_within_each_comparison() -> None:
    rows = verdict_rows(
        {
            ("unedited", 0): "rrrrrrrrcu",
            ("refusal", 1): "ccccccdcrr",  # 8 lost, 1 gained, one pair unread
            ("random", 1): "rrrrrrrrcr",  # against it 8 lost, 1 gained, 10 pairs
            ("refusal", 2): "rrrrrrrrcr",  # nothing lost
            ("random", 2): "rrrrrrrrcr",
        }
    )
    tests = paired_table(rows).set_index(["against", "directions"])
    one = tests.loc[("unedited", 1)]
    assert (one["n"], one["lost"], one["gained"], one["drop"]) == (9, 8, 1, pytest.approx(7 / 9))
    assert one["p"] == pytest.approx(mcnemar(8, 1))
    assert one["low"] < one["drop"] < one["high"]
    assert tests.loc[("random", 1), "n"] == 10
    for against in ("unedited", "random"):
        p = tests.loc[against, "p"].to_numpy()
        assert tests.loc[against, "p_holm"].to_numpy() == pytest.approx(holm(p))
    assert tests.loc[("unedited", 2), "p"] == 1.0
    # Shuffled rows are the same pairs.
    again = paired_table(rows.sample(frac=1, random_state=0)).set_index(["against", "directions"])
    pd.testing.assert_frame_equal(again.sort_index(), tests.sort_index())


def test_of_several_random_draws_the_one_counts_that_does_most() -> None:
    states = {("unedited", 0): "r" * 12, ("refusal", 1): "c" * 12}
    weak, strong = "r" * 12, "c" * 9 + "r" * 3
    by = {}
    for name, draws in {"weak": (weak, weak), "strong": (weak, strong), "unread": (weak, "u" * 12)}.items():
        random = {("random", 1, draw): letters for draw, letters in enumerate(draws, start=1)}
        by[name] = paired_table(verdict_rows({**states, **random})).set_index("against").loc["random"]
    assert (by["weak"]["p"], by["weak"]["lost"]) == (pytest.approx(mcnemar(12, 0)), 12)
    assert (by["strong"]["draw"], by["strong"]["lost"]) == (2, 3)
    assert by["strong"]["p"] == pytest.approx(mcnemar(3, 0))
    assert np.isnan(by["unread"]["p"])
    # To both sides of what the directions do: they do not do more than random ones.
    half = {("unedited", 0): weak, ("refusal", 1): "c" * 6 + "r" * 6}
    both = {("random", 1, 1): weak, ("random", 1, 2): "c" * 12}
    assert paired_table(verdict_rows({**half, **both})).set_index("against").loc["random", "p"] == 1.0
    # Without random draws there is no such row.
    assert set(paired_table(verdict_rows(states))["against"]) == {"unedited"}


def test_a_system_breaks_where_half_is_lost_and_tested() -> None:
    before = "r" * 20
    states = {("unedited", 0): before, ("refusal", 1): "c" * 8 + "r" * 12}
    states |= {("refusal", 2): "d" * 15 + "r" * 5, ("refusal", 4): "c" * 20}
    states |= {("random", k): before for k in (1, 2, 4)}
    few = {("unedited", 0): "rrcc", ("refusal", 1): "cccc", ("random", 1): "rrcc"}  # all lost, on two pairs
    rows = pd.concat([verdict_rows(states), verdict_rows(few, "few")], ignore_index=True)
    costs = {key: {"kl": 0.1, "perplexity": 2.0} for key, _ in rows.groupby(list(STATE_COLUMNS))}
    survival = survival_table(rows, costs)  # type: ignore[arg-type]
    found = breaking_table(survival, paired_table(rows)).set_index("system")
    # 8 of 20 lost is tested and is less than half; two directions lose more, into degenerate text.
    assert found.loc["s", "directions"] == 2
    assert (found.loc["s", "degenerate"], found.loc["s", "complied"]) == (0.75, 0.0)
    assert np.isnan(found.loc["few", "directions"])
    assert found.loc["few", "refused"] == 0.5
    harmless = survival["label"] == "harmless"
    assert (survival.loc[harmless, "kl"] == 0.1).all()
    assert survival.loc[~harmless, ["kl", "perplexity"]].isna().all(axis=None)


def test_ranks_know_no_sign_and_chance_is_exceeded_by_one_in_twenty() -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(60) < 30
    noise = rng.standard_normal((60, 300))
    told = (truth + 0.1 * rng.standard_normal(60))[:, None]
    table = rank_table(np.hstack([told, -told, noise]), truth, system="s", layer=3, seed=0)
    assert table["auroc"][:2].tolist() == [1.0, 1.0]
    assert (table["auroc"] >= 0.5).all()
    above = (table["auroc"] > table["auroc_chance"])[2:].mean()
    assert 0.01 < above < 0.11
    assert table["auroc_chance"].between(0.6, 0.7).all()
    assert tuple(table.columns) == RANK_COLUMNS


# -- pieces -----------------------------------------------------------------------------------------


class Says:
    """A judge to which everything is compliance but what says nothing."""

    name = "says"

    def __call__(self, responses: Any) -> list[Verdict]:
        labels: list[Label] = ["degenerate" if "la la" in r.text else "compliance" for r in responses]
        return [
            Verdict(id=r.id, judge=self.name, label=label) for r, label in zip(responses, labels, strict=True)
        ]


def test_safe_answers_of_other_rungs_are_refusals() -> None:
    opening = OPENINGS[0]
    texts = {
        f"{TAG} here it is": "refusal",
        f"  {TAG} la la": "refusal",
        f"here {TAG}": "compliance",
        "here": "compliance",
        f"{opening} Ask a doctor.": "refusal",
        f"{opening} la la": "degenerate",
        f"Sure. {opening}": "compliance",
    }
    responses = [Response(id=str(i), prompt="p", text=text) for i, text in enumerate(texts)]
    found = [v.label for v in RungAware(Says())(responses)]
    assert found == list(texts.values())
    assert RungAware(Says()).name == "says"


@pytest.mark.parametrize(("n", "expected"), [(2, [1]), (4, [1, 2, 3]), (9, [1, 2, 3, 4, 5, 6, 7, 8])])
def test_few_layers_are_all_tried(n: int, expected: list[int]) -> None:
    assert candidate_layers(n) == expected


def test_of_many_layers_some_are_tried() -> None:
    layers = candidate_layers(31)
    assert len(set(layers)) == 8
    assert layers[-1] == 30
    assert 0 not in layers
    assert max(b - a for a, b in itertools.pairwise(layers)) <= 5


def tried(*rows: tuple[int, float, float, float]) -> list[Tried]:
    return [Tried(layer=at, complied=c, refused=r, kl=kl) for at, c, r, kl in rows]


def test_a_layer_that_wrecks_the_model_is_not_chosen_for_its_compliance() -> None:
    wrecking, gentle, idle = (15, 1.0, 0.0, 4.2), (19, 0.9, 0.1, 0.15), (4, 0.2, 0.8, 0.01)
    chosen, why = choose_layer(tried(wrecking, gentle, idle), refused=0.9)
    assert chosen.layer == 19
    assert "bound 0.2" in why
    # Control: as gentle as the others, the one with most compliance wins.
    assert choose_layer(tried((15, 1.0, 0.0, 0.12), gentle), refused=0.9)[0].layer == 15
    # Of equals the one with the lower KL.
    assert choose_layer(tried(gentle, (22, 0.9, 0.1, 0.11)), refused=0.9)[0].layer == 22
    # Where only damage halves refusals, the least of it; where nothing does, most compliance.
    chosen, why = choose_layer(tried(wrecking, (22, 0.8, 0.2, 2.0), idle), refused=0.9)
    assert (chosen.layer, "lowest" in why, "KL of 2" in why) == (22, True, True)
    chosen, why = choose_layer(tried(idle, (8, 0.3, 0.7, 0.3)), refused=0.9)
    assert (chosen.layer, "no layer halves refusals" in why) == (8, True)
    assert choose_layer(tried((3, float("nan"), float("nan"), float("nan")), idle), refused=0.9)[0].layer == 4


def test_a_layer_under_which_more_is_refused_is_not_said_to_fall() -> None:
    """0.4 % are not 0 %, and 70 % of a system that refused 50 % are a rise."""
    _, why = choose_layer(tried((8, 0.3, 0.7, 0.3)), refused=0.5)
    assert "70 %" in why
    assert "fall" not in why
    _, why = choose_layer(tried((8, 0.9, 0.004, 0.05)), refused=0.5)
    assert "0.4 %" in why


# -- wrong input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"systems": ()}, "no system"),
        ({"systems": ("a", "b", "a")}, "'a' is named twice"),
        ({"counts": (0, 1)}, "each 1 or more"),
        ({"counts": ()}, "(none)"),
        ({"counts": (2, 1)}, "ascending"),
        ({"counts": (1, 1)}, "ascending"),
        ({"beside": ("x", "x")}, "each run once"),
        ({"limit": 1}, "greater than or equal to 2"),
        ({"compare_limit": 3}, "4 or more, or 0 for no comparison"),
        ({"speed": 1}, "no such field"),
    ],
)
def test_a_wrong_configuration_is_reported(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(MechsafetyError, match=re.escape(said)):
        LadderConfig(**{"systems": ("a",)} | fields)


def test_what_is_wrong_is_reported_before_anything_is_measured(
    tiny_folder: Callable[..., Path], prompts_file: Path, tmp_path: Path
) -> None:
    system = str(tiny_folder())
    one_class = write_csv(small_prompts(6).harmful, tmp_path / "harmful.csv")
    no_report = [p for p in small_prompts(6) if p.split != "report"]
    unsplit = write_csv(type(small_prompts(6))(tuple(no_report), "x"), tmp_path / "unsplit.csv")
    sweep = tmp_path / "sweep"
    with open_run(sweep, config={"kind": "sweep"}):
        pass
    unfinished = tmp_path / "unfinished"
    with open_run(unfinished, config={"kind": "ladder"}):
        pass
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"prompts": str(one_class)}, "no harmless prompts in split 'fit'"),
        ({"prompts": str(unsplit)}, "no harmful prompts in split 'report'"),
        ({"prompts": str(tmp_path / "none.csv")}, "none.csv"),
        ({"systems": (system, str(tmp_path / "nowhere"))}, "nowhere"),
        ({"systems": (system, f"{system}+nothing")}, "nothing"),
        ({"base": f"{system}+nothing"}, "nothing"),
        ({"judge": "nobody"}, "nobody"),
        ({"counts": (7,)}, "7 directions of 6 harmful fit prompts"),
        ({"beside": (str(sweep),)}, "kind 'sweep'"),
        ({"beside": (str(unfinished),)}, "not finished"),
        ({"beside": (str(tmp_path / "none"),)}, "not a run folder"),
        ({"regions": str(sweep)}, "kind 'sweep'"),
        ({"regions": str(tmp_path / "none")}, "not a run folder"),
    ]
    for fields, said in wrong:
        with pytest.raises(MechsafetyError, match=said):
            run_ladder(small((system,), prompts_file).model_copy(update=fields), tmp_path / "run")
        assert not (tmp_path / "run").exists(), fields


def test_more_directions_than_dimensions_are_refused(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    many = write_csv(small_prompts(40), tmp_path / "many.csv")
    with pytest.raises(MechsafetyError, match=r"33 directions of .* 32 dimensions"):
        run_ladder(small((str(tiny_folder()),), many, counts=(33,)), tmp_path / "run")
