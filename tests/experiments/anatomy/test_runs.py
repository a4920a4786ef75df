"""An anatomy from its configuration to its tables: every part, resumed to the same tables, wrong input told."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import ValidationError

from mechsafety.anatomy.actions import ACTION_COLUMNS, RATIO_COLUMNS
from mechsafety.anatomy.clusters import (
    ATTACK_COLUMNS,
    SEPARATION_COLUMNS,
    TAU_COLUMNS,
    fit_centroids,
    mlp_activations,
    separation,
)
from mechsafety.anatomy.clusters import CHANGE_COLUMNS as CLUSTER_CHANGE_COLUMNS
from mechsafety.anatomy.interpolation import INTERPOLATION_COLUMNS, interpolation_rows
from mechsafety.anatomy.links import ABLATION_COLUMNS, LINK_COLUMNS
from mechsafety.anatomy.outputs import greedy_answers
from mechsafety.anatomy.readings import prompt_groups
from mechsafety.anatomy.reversal import REVERSAL_COLUMNS, ReversalState, reversal_rows
from mechsafety.anatomy.sensitivity import NORM_COLUMNS, SENSITIVITY_COLUMNS, gradient_norms
from mechsafety.anatomy.weight_changes import CHANGE_COLUMNS, SPECTRUM_COLUMNS
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Label, Response, Verdict
from mechsafety.experiments import session as sessions
from mechsafety.experiments.anatomy import experiment as anatomy_experiment
from mechsafety.experiments.anatomy import work as anatomy_work
from mechsafety.experiments.anatomy.answers import VERDICT_COLUMNS
from mechsafety.experiments.anatomy.config import PART_TABLES, PARTS, TABLES, AnatomyConfig, Part
from mechsafety.experiments.anatomy.experiment import read_anatomy, run_anatomy
from mechsafety.judges.kinds.fluent import FluentJudge
from mechsafety.prompts.prompt_set import Prompt, PromptSet
from mechsafety.runs.folder import open_run, read_run
from tests.conftest import save_tiny
from tests.prompt_sets import small_prompts, write_csv

COLUMNS = {
    "separation": SEPARATION_COLUMNS,
    "tau": TAU_COLUMNS,
    "attack_tau": ATTACK_COLUMNS,
    "weight_changes": CHANGE_COLUMNS,
    "spectrum": SPECTRUM_COLUMNS,
    "action": (*ACTION_COLUMNS, "positions"),
    "action_ratios": (*RATIO_COLUMNS, "positions"),
    "sensitivity": SENSITIVITY_COLUMNS,
    "norms": NORM_COLUMNS,
    "interpolation": INTERPOLATION_COLUMNS,
    "reversal": REVERSAL_COLUMNS,
    "links": LINK_COLUMNS,
    "ablation": ABLATION_COLUMNS,
    "d_prime_changes": CLUSTER_CHANGE_COLUMNS,
    "verdicts": VERDICT_COLUMNS,
}
FAMILIES = ("swapped", "mixed")
GROUPS = ("safe", "unsafe", *FAMILIES)


class Parity:
    """A random model refuses nothing that reads so: here a hash of each answer says what it counts as."""

    name = "parity"

    def __init__(self, labels: Sequence[Label] = ("refusal", "compliance", "degenerate")) -> None:
        self.labels = labels

    def __call__(self, responses: Sequence[Response]) -> list[Verdict]:
        return [
            Verdict(id=r.id, judge=self.name, label=self.labels[self.number(r) % len(self.labels)])
            for r in responses
        ]

    @staticmethod
    def number(response: Response) -> int:
        return hashlib.sha256(response.text.encode()).digest()[0]


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anatomy_experiment, "load_judge", lambda *_, **__: Parity())


def attacks(per_family: int = 3) -> PromptSet:
    drawn = [p for p in small_prompts(per_family * len(FAMILIES), seed=5).report if p.label == "harmful"]
    return PromptSet(
        tuple(replace(p, category=FAMILIES[i % len(FAMILIES)]) for i, p in enumerate(drawn)), "attacks"
    )


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    return {
        "prompts": str(write_csv(small_prompts(5), tmp_path / "prompts.csv")),
        "attacks": str(write_csv(attacks(), tmp_path / "attacks.csv")),
    }


@pytest.fixture
def small(tiny_folder: Callable[..., Path], files: dict[str, str]) -> Callable[..., AnatomyConfig]:
    def make(architecture: str = "llama", **changed: Any) -> AnatomyConfig:
        fields: dict[str, Any] = {
            **{"base": str(tiny_folder(architecture)), "tuned": str(tiny_folder(architecture, 1))},
            "control": str(tiny_folder(architecture, 2)),
            **files,
            "max_new_tokens": 3,
            "alphas": (0.0, 1.0, 2.0),
            "ranks": (2,),
            "dtype": "float32",
            "device": "cpu",
        }
        return AnatomyConfig(**fields | changed)

    return make


def rows_of(table: pd.DataFrame, **chosen: object) -> pd.DataFrame:
    for column, value in chosen.items():
        table = table[table[column] == value]
    return table.reset_index(drop=True)


# -- a whole run --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("parity")
def test_every_part_of_a_run(small: Callable[..., AnatomyConfig], tmp_path: Path) -> None:
    config = small()
    whole = run_anatomy(config, tmp_path / "run")
    of_parts = [name for part in PARTS for name in PART_TABLES[part]]
    assert list(whole.tables) == list(TABLES) == [*of_parts, "verdicts"]
    for name, table in whole.tables.items():
        assert list(table.columns) == list(COLUMNS[name]), name
        assert len(table), name
    assert set(whole.tables["separation"]["model"]) == {"base", "tuned", "control"}
    assert tuple(dict.fromkeys(whole.tables["tau"]["group"])) == GROUPS
    assert tuple(dict.fromkeys(whole.tables["action"]["group"])) == GROUPS
    assert set(whole.tables["weight_changes"]["kind"]) == {"gate", "up", "down"}
    assert set(whole.tables["action"]["model"]) == {"tuned", "control", "random"}
    assert len(whole.tables["interpolation"]) == 2 * len(config.alphas) * len(GROUPS)
    assert len(whole.tables["reversal"]) == (7 + 2 * len(config.ranks)) * len(GROUPS)
    assert {"energy", "snip", "magnitude"} <= set(whole.tables["links"]["what"])
    assert set(whole.tables["ablation"]["group"]) == set(GROUPS)
    assert "Anatomy" in whole._repr_html_()
    manifest = read_run(tmp_path / "run").manifest
    assert manifest["links"]["refusals_scored"] > 0
    assert manifest["links"]["layer"] == whole.tables["ablation"]["layer"][0]
    assert set(manifest["models"]) == set(config.models.values())
    assert not list((tmp_path / "run").rglob("*.safetensors"))
    read = read_anatomy(tmp_path / "run")
    for name, file in TABLES.items():
        assert (tmp_path / "run" / file).is_file()
        pd.testing.assert_frame_equal(read.tables[name], whole.tables[name])


@pytest.mark.usefixtures("parity")
def test_an_interrupted_run_goes_on_to_the_same_tables(
    small: Callable[..., AnatomyConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: tuple[Part, ...] = ("interpolation", "reversal", "links")
    config = small(parts=parts, control=None, limit=2, alphas=(0.0, 0.5, 2.0), ranks=(1,))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_anatomy(config, whole)
    # Killed at a state of the interpolation, at one of the reversal, and while the weights are scored.
    states: list[object] = []
    for name, at in (("interpolation_rows", 2), ("reversal_rows", 3)):
        dying(monkeypatch, name, states, at=at)
        with pytest.raises(KeyboardInterrupt):
            run_anatomy(config, cut)
    dying(monkeypatch, "score_weights", [], at=1)
    with pytest.raises(KeyboardInterrupt):
        run_anatomy(config, cut)
    with pytest.raises(MechsafetyError, match="not finished"):
        read_anatomy(cut)
    assert len(states) == 2 + (5 + 2) + 2  # the two that were cut were done again, no other
    answered_again: list[object] = []
    monkeypatch.setattr(
        "mechsafety.experiments.anatomy.answers.generate", lambda *_, **__: answered_again.append(0)
    )
    run_anatomy(config, cut)
    assert len(states) == 2 + (5 + 2) + 2
    assert not answered_again
    kept = {path: read_anatomy(path).responses() for path in (cut, whole)}
    pd.testing.assert_frame_equal(kept[cut], kept[whole])
    assert not kept[cut].duplicated(["part", "model", "state", "id"]).any()
    for name in (name for part in parts for name in PART_TABLES[part]):
        assert (cut / TABLES[name]).read_bytes() == (whole / TABLES[name]).read_bytes(), name


def test_another_judge_reads_a_finished_anatomy(
    small: Callable[..., AnatomyConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anatomy_experiment, "load_judge", lambda *_, **__: Parity())
    parts: tuple[Part, ...] = ("interpolation", "reversal", "links")
    first = run_anatomy(small(parts=parts, control=None, limit=2, alphas=(0.0, 0.5)), tmp_path / "run")

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was generated")

    monkeypatch.setattr("mechsafety.judges.outcomes.generate", never)
    monkeypatch.setattr("mechsafety.experiments.anatomy.answers.generate", never)
    monkeypatch.setattr(sessions, "load_model", never)
    answers = first.responses()
    assert {"own answers", "interpolation", "reversal", "ablation"} <= set(answers["part"])
    held_out = answers.query("part == 'reversal' and state == 'mlp'")
    assert len(held_out) == int(first.tables["reversal"].query("state == 'mlp'")["n"].sum())
    key = tmp_path / "key.csv"
    rows = answers.drop_duplicates("prompt")
    pd.DataFrame({"prompt": rows["prompt"], "answer": rows["response"], "refusal": "-"}).to_csv(
        key, index=False
    )
    again = first.judge("phrases:arditi", f"key:{key}")
    shares = again.rates_by_judge().groupby("judge")["compliance"].mean()
    assert shares["phrases:arditi"] != shares[f"key:{key}"]  # the control: judges differ
    assert (again.path / "added_judges.csv").is_file()
    assert "Judges added after the run" in (again.path / "report.html").read_text(encoding="utf-8")


def dying(monkeypatch: pytest.MonkeyPatch, name: str, calls: list[object], *, at: int) -> None:
    """Interrupt the ``at``-th call of what the work calls ``name``, the first time only."""
    work = getattr(anatomy_work, name)
    here: list[object] = []

    def call(*arguments: Any, **options: Any) -> Any:
        here.append(arguments)
        calls.append(arguments)
        if len(here) == at:
            raise KeyboardInterrupt
        return work(*arguments, **options)

    monkeypatch.setattr(anatomy_work, name, call)


# -- oracles ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("parity")
@pytest.mark.parametrize(("architecture", "dtype"), [("llama", "bfloat16"), ("gpt2", "float32")])
def test_the_ends_of_the_line_are_what_the_models_answered_before(
    small: Callable[..., AnatomyConfig],
    tiny: Callable[..., Any],
    tmp_path: Path,
    architecture: str,
    dtype: str,
) -> None:
    config = small(architecture, dtype=dtype, parts=("interpolation", "reversal"))
    run = run_anatomy(config, tmp_path / "run")
    base, tuned = tiny(architecture, dtype=dtype), tiny(architecture, dtype=dtype, seed=1)
    groups = prompt_groups(small_prompts(5).report, attacks())
    given: dict[str, Any] = {"judge": Parity(), "max_new_tokens": 3, "seed": 0}
    found: list[pd.DataFrame] = []
    for alpha in config.alphas:
        direct = pd.DataFrame(interpolation_rows(base, tuned, alpha, groups, **given))
        line = rows_of(run.tables["interpolation"], model="tuned", alpha=alpha)
        pd.testing.assert_frame_equal(line.drop(columns="model"), direct)
        found.append(direct.drop(columns="alpha"))
    assert not found[0].equals(found[1])  # base and tuned do differ
    for state in (
        ReversalState(what="base"),
        ReversalState(what="tuned"),
        ReversalState(what="mlp"),
        ReversalState(what="kept", r=2),
    ):
        direct = pd.DataFrame(reversal_rows(base, tuned, state, groups, **given))
        made = rows_of(run.tables["reversal"], state=state.what)
        made = made[made["r"].isna()] if state.r is None else made[made["r"] == state.r]
        pd.testing.assert_frame_equal(made.reset_index(drop=True), direct, check_dtype=False)


@pytest.mark.usefixtures("parity")
def test_clusters_sensitivity_and_control_are_of_their_own_models(
    small: Callable[..., AnatomyConfig], tiny: Callable[..., Any], tmp_path: Path
) -> None:
    run = run_anatomy(small(parts=("sensitivity", "clusters")), tmp_path / "run")
    of_parts = [*PART_TABLES["clusters"], *PART_TABLES["sensitivity"]]
    assert list(run.tables) == [*of_parts, "verdicts"]
    prompts = small_prompts(5)
    report = [p for group in prompt_groups(prompts.report).values() for p in group]
    tables = {}
    for seed, role in enumerate(("base", "tuned", "control")):
        model = tiny("llama", seed=seed)
        norms = rows_of(run.tables["norms"], model=role)
        ids = dict(zip(norms["id"], norms["norm"], strict=True))
        direct = gradient_norms(model, report).tolist()
        assert [ids[p.id] for p in report] == pytest.approx(direct, rel=1e-4)
        fit, held = (greedy_answers(model, p, max_new_tokens=3, seed=0) for p in (prompts.fit, report))
        read = [mlp_activations(model, answers, positions="last_prompt") for answers in (fit, held)]
        centroids = fit_centroids(read[0], [p.label == "harmful" for p in prompts.fit])
        unsafe = [p.label == "harmful" for p in report]
        table = separation(read[1], unsafe, centroids, model=role, positions="last_prompt", seed=0)
        made = rows_of(run.tables["separation"], model=role, positions="last_prompt")
        pd.testing.assert_frame_equal(made, table, rtol=1e-3, atol=1e-4)
        tables[role] = table["d_prime"]
    assert not tables["base"].equals(tables["control"])


def test_a_judge_that_asks_the_base_asks_a_copy_that_is_never_changed(
    small: Callable[..., AnatomyConfig], tiny: Callable[..., Any], tmp_path: Path
) -> None:
    config = small(parts=("interpolation",), control=None, alphas=(2.0,), max_new_tokens=4)
    assert config.judge == f"fluent:{config.base}"
    run = run_anatomy(config, tmp_path / "run")
    groups = prompt_groups(small_prompts(5).report, attacks())
    base, tuned = tiny("llama"), tiny("llama", seed=1)

    def rows(judge: FluentJudge) -> pd.DataFrame:
        return pd.DataFrame(
            interpolation_rows(base, tuned, 2.0, groups, judge=judge, max_new_tokens=4, seed=0)
        )

    kept = rows(FluentJudge("kept", tiny("llama")))
    pd.testing.assert_frame_equal(run.tables["interpolation"].drop(columns="model"), kept)
    assert not rows(FluentJudge("moved", base)).equals(kept)


def test_without_refusals_the_safety_sets_are_left_out_and_the_rest_is_there(
    small: Callable[..., AnatomyConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anatomy_experiment, "load_judge", lambda *_, **__: Parity(("compliance",)))
    said: list[str] = []
    run = run_anatomy(small(parts=("links",), attacks=None), tmp_path / "run", say=said.append)
    assert "energy" in set(run.tables["links"]["what"])
    assert not {"snip", "wanda", "magnitude"} & set(run.tables["links"]["what"])
    assert set(run.tables["ablation"]["state"]) == {"tuned", "ablated", "random_ablated"}
    assert any("refused no harmful fit prompt" in line for line in said)
    assert read_run(tmp_path / "run").manifest["links"]["refusals_scored"] == 0


@pytest.mark.usefixtures("parity")
def test_a_run_without_attacks_or_control(small: Callable[..., AnatomyConfig], tmp_path: Path) -> None:
    parts: tuple[Part, ...] = ("clusters", "weights")
    run = run_anatomy(small(parts=parts, attacks=None, control=None), tmp_path / "run")
    assert len(run.tables["attack_tau"]) == 0
    assert list(run.tables["attack_tau"].columns) == ATTACK_COLUMNS
    assert set(run.tables["tau"]["model"]) == {"base", "tuned"}
    assert set(run.tables["weight_changes"]["model"]) == {"tuned", "random"}
    assert (tmp_path / "run" / "attack_tau.csv").is_file()
    pd.testing.assert_frame_equal(read_anatomy(tmp_path / "run").tables["action"], run.tables["action"])


@pytest.mark.usefixtures("parity")
def test_every_map_of_another_architecture(small: Callable[..., AnatomyConfig], tmp_path: Path) -> None:
    config = small("gpt2", dtype="bfloat16", maps="all", parts=("weights", "sensitivity"), attacks=None)
    run = run_anatomy(config, tmp_path / "run")
    kinds = {"q", "k", "v", "o", "up", "down"}
    assert len(run.tables["weight_changes"]) == 3 * 4 * len(kinds)
    assert set(run.tables["action_ratios"]["kind"]) == kinds
    assert run.tables["action"]["action"].notna().all()


@pytest.mark.usefixtures("parity")
def test_limit_takes_so_many_of_each_label_split_and_family(
    small: Callable[..., AnatomyConfig], tmp_path: Path
) -> None:
    run = run_anatomy(small(parts=("clusters",), limit=2, control=None), tmp_path / "run")
    counts = rows_of(run.tables["tau"], model="base", positions="output", layer=0)["group"].value_counts()
    assert dict(counts) == dict.fromkeys(GROUPS, 2)
    fit = pd.read_parquet(tmp_path / "run" / "parts" / "completions" / "base-fit.parquet")
    assert dict(fit["label"].value_counts()) == {"harmful": 2, "harmless": 2}


# -- what is wrong ------------------------------------------------------------------------------------


def changed_prompts(change: Callable[[Prompt], Prompt | None], tmp_path: Path) -> str:
    kept = tuple(q for q in (change(p) for p in small_prompts(3)) if q is not None)
    return str(write_csv(PromptSet(kept, "changed"), tmp_path / "changed.csv"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: replace(p, split="report"), "no harmful prompts in split 'fit'"),
        (lambda p: None if p.split == "validation" else p, "no harmful prompts in split 'validation'"),
        (lambda p: p if p.label == "harmful" else None, "no harmless prompts in split 'fit'"),
        (lambda p: p if p.label == "harmless" else None, "no harmful prompts in split 'fit'"),
    ],
)
def test_prompt_sets_that_lack_something(
    small: Callable[..., AnatomyConfig],
    tmp_path: Path,
    change: Callable[[Prompt], Prompt | None],
    message: str,
) -> None:
    config = small(prompts=changed_prompts(change, tmp_path))
    with pytest.raises(MechsafetyError, match=message):
        run_anatomy(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_part_does_not_need_may_lack(small: Callable[..., AnatomyConfig], tmp_path: Path) -> None:
    prompts = changed_prompts(lambda p: p if p.split == "report" else None, tmp_path)
    run = run_anatomy(small(prompts=prompts, parts=("sensitivity",)), tmp_path / "run")
    assert set(run.tables["sensitivity"]["group"]) == set(GROUPS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "harmless"}, "labelled harmless"),
        ({"category": ""}, "category ''"),
        ({"category": "unsafe"}, "safe and unsafe are taken"),
        ({"text": small_prompts(5).fit[0].text}, "which centroids and directions are found on"),
    ],
)
def test_attacks_that_are_none(
    small: Callable[..., AnatomyConfig], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    first, *others = attacks()
    path = write_csv(PromptSet((replace(first, **change), *others), "attacks"), tmp_path / "wrong.csv")
    with pytest.raises(MechsafetyError, match=message):
        run_anatomy(small(attacks=str(path)), tmp_path / "run")
    with pytest.raises(MechsafetyError, match=r"gone\.csv' does not exist"):
        run_anatomy(small(attacks=str(tmp_path / "gone.csv")), tmp_path / "run")


def test_models_that_are_no_pair(small: Callable[..., AnatomyConfig], tmp_path: Path) -> None:
    run = tmp_path / "run"
    (tmp_path / "empty").mkdir()
    other = str(save_tiny(tmp_path / "other", "gpt2"))
    copy = str(save_tiny(tmp_path / "copy"))
    for changed, message in (
        ({"tuned": str(tmp_path / "empty")}, "holds no config.json: it is not a saved model"),
        ({"tuned": str(tmp_path / "absent")}, "does not exist"),
        ({"tuned": other}, "must be of one architecture"),
        ({"control": other}, "must be of one architecture"),
        ({"tuned": copy}, "are the same in every matrix"),
        ({"control": copy}, "are the same in every matrix"),
        ({"judge": "oracle"}, "no judge is called 'oracle'"),
        ({"judge": "key:absent.csv"}, "does not exist"),
    ):
        with pytest.raises(MechsafetyError, match=message):
            run_anatomy(small(**changed), run)
        assert not run.exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tuned": "b"}, "three different models"),
        ({"control": "t"}, "three different models"),
        ({"parts": ()}, "at least 1 item"),
        ({"parts": ("nothing",)}, "nothing"),
        ({"ranks": (0,)}, "1 or more"),
        ({"alphas": (float("nan"),)}, "finite"),
        ({"limit": 1}, "limit"),
    ],
)
def test_configurations_that_make_no_sense(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AnatomyConfig.model_validate({"base": "b", "tuned": "t"} | changed)


def test_parts_go_in_their_order_and_once() -> None:
    config = AnatomyConfig(base="b", tuned="t", parts=("links", "clusters", "links"))
    assert config.parts == ("clusters", "links")
    assert config.models == {"base": "b", "tuned": "t"}


def test_only_a_finished_anatomy_is_read(tmp_path: Path) -> None:
    with pytest.raises(MechsafetyError, match="is not a run folder"):
        read_anatomy(tmp_path)
    with open_run(tmp_path / "other", config={"kind": "sweep"}):
        pass
    with pytest.raises(MechsafetyError, match="is no anatomy"):
        read_anatomy(tmp_path / "other")
