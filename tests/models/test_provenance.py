"""A run is of one set of sources: what it was made from is told from files, and a change of it is never mixed in."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import Progress
from mechsafety.edits.files import save_edit
from mechsafety.edits.interventions import Ablate
from mechsafety.experiments.anatomy.config import AnatomyConfig
from mechsafety.experiments.anatomy.experiment import run_anatomy
from mechsafety.experiments.comparison.experiment import run_comparison
from mechsafety.experiments.generation.config import GenerationConfig
from mechsafety.experiments.generation.experiment import run_generation
from mechsafety.experiments.ladder.config import LadderConfig
from mechsafety.experiments.ladder.experiment import run_ladder
from mechsafety.experiments.regions.config import RegionsConfig
from mechsafety.experiments.regions.experiment import run_regions
from mechsafety.experiments.robustness.config import RobustnessConfig
from mechsafety.experiments.robustness.experiment import run_robustness
from mechsafety.experiments.study.config import StudyConfig
from mechsafety.experiments.study.experiment import run_study
from mechsafety.experiments.sweep.config import SweepConfig
from mechsafety.experiments.sweep.experiment import run_sweep
from mechsafety.judges.registry import judge_sources
from mechsafety.models import provenance
from mechsafety.models.loading import PLAIN_TEMPLATE, load_model
from mechsafety.models.provenance import of_files, of_model, of_models
from mechsafety.prompts.prompt_set import load_prompts
from mechsafety.runs import folder as runs
from mechsafety.runs.folder import MANIFEST, Provenance, open_run, read_run
from tests.conftest import save_tiny
from tests.prompt_sets import small_prompts, write_csv

pytestmark = pytest.mark.usefixtures("unpublished")

CONFIG = {"kind": "test", "seed": 0}
ONE = Provenance(identity={"weights": "a" * 64, "tokenizer": "b" * 64}, circumstance={"dtype": "float32"})


def sourced(path: Path, made_from: Provenance = ONE, **options: Any) -> dict[str, Any]:
    with open_run(path, config=CONFIG, sources={"model m": made_from}, **options) as run:
        return run.manifest


def refused(path: Path, made_from: Provenance = ONE, **options: Any) -> str:
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != ".lock"}
    with pytest.raises(MechsafetyError) as caught:
        sourced(path, made_from, **options)
    assert {p: p.read_bytes() for p in before} == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- the run folder ---------------------------------------------------------------------------------


def test_another_identity_is_refused_by_name_even_when_versions_may_differ(tmp_path: Path) -> None:
    sourced(tmp_path)
    other = Provenance(identity={"weights": "c" * 64, "tokenizer": "b" * 64}, circumstance=ONE.circumstance)
    for options in ({}, {"allow_other_versions": True}):
        message = refused(tmp_path, other, **options)
        assert "model m.weights" in message
        assert f"'{'a' * 12}' -> '{'c' * 12}'" in message
        assert "tokenizer" not in message
        assert "out=" in message
    assert sourced(tmp_path)["sources"] == {"model m": dict(ONE.identity)}


@pytest.mark.parametrize(
    ("before", "now"),
    [({"weights": "a"}, {"weights": "a", "adapter": "x"}), ({"weights": "a", "adapter": "x"}, {"weights": "a"})],
)  # fmt: skip
def test_what_came_or_went_is_a_change(tmp_path: Path, before: dict[str, str], now: dict[str, str]) -> None:
    sourced(tmp_path, Provenance(identity=before))
    assert "model m.adapter" in refused(tmp_path, Provenance(identity=now))


def test_other_circumstances_are_refused_unless_allowed_and_then_recorded(tmp_path: Path) -> None:
    first = sourced(tmp_path)
    assert len(first["sessions"]) == 1
    half = Provenance(identity=ONE.identity, circumstance={"dtype": "bfloat16"})
    message = refused(tmp_path, half)
    assert "'float32' -> 'bfloat16'" in message
    assert "allow_other_versions=True" in message
    allowed = sourced(tmp_path, half, allow_other_versions=True)
    assert [s["sources"]["model m"]["dtype"] for s in allowed["sessions"]] == ["float32", "bfloat16"]
    # Both are recorded now, so that either goes on; a third does not.
    assert sourced(tmp_path, half) == sourced(tmp_path) == allowed
    assert "float16" in refused(
        tmp_path, Provenance(identity=ONE.identity, circumstance={"dtype": "float16"})
    )


def test_other_versions_are_circumstances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sourced(tmp_path)
    real = runs.versions()
    monkeypatch.setattr(runs, "versions", lambda: real | {"torch": "0.0.1", "plotly": "0.0.1"})
    message = refused(tmp_path)
    assert f"{real['torch']!r} -> '0.0.1'" in message
    assert "plotly" not in message  # draws, and computes nothing
    manifest = sourced(tmp_path, allow_other_versions=True)
    assert [s["versions"]["torch"] for s in manifest["sessions"]] == [real["torch"], "0.0.1"]
    assert manifest["versions"] == real


def test_nothing_changed_goes_on_and_changes_nothing(tmp_path: Path) -> None:
    sourced(tmp_path)
    before = (tmp_path / MANIFEST).read_bytes()
    sourced(tmp_path)
    assert (tmp_path / MANIFEST).read_bytes() == before


def test_a_source_that_comes_later_is_bound_from_then_on(tmp_path: Path) -> None:
    later = Provenance(identity={"weights": "1"}, circumstance={"dtype": "float32"})
    with open_run(tmp_path, config=CONFIG, sources={"model m": ONE}) as run:
        run.require_source("model n", later)
        run.require_source("model n", later)
        with pytest.raises(MechsafetyError, match=r"model n\.weights: '1' -> '2'"):
            run.require_source("model n", Provenance(identity={"weights": "2"}))
    with (
        open_run(tmp_path, config=CONFIG, sources={"model m": ONE}) as run,
        pytest.raises(MechsafetyError, match="bfloat16"),
    ):
        run.require_source(
            "model n", Provenance(identity={"weights": "1"}, circumstance={"dtype": "bfloat16"})
        )


def test_a_run_without_recorded_sources_is_read_and_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps({"config": CONFIG, "versions": {}}))
    sourced(tmp_path)  # nothing was made yet
    old = tmp_path / "old"
    old.mkdir()
    (old / MANIFEST).write_text(json.dumps({"config": CONFIG, "versions": {}}))
    read_run(old).write_part(pd.DataFrame({"id": ["x"]}), "responses", "m")
    assert "older version" in refused(old)
    assert read_run(old).has_part("responses", "m")


# -- what models and files are ----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "ckpt", "llama")


def changed_kinds(folder: Path, change: Callable[[], object], **options: Any) -> set[str]:
    before = of_model(str(folder), **options).identity
    change()
    after = of_model(str(folder), **options).identity
    return {kind for kind in {*before, *after} if before.get(kind) != after.get(kind)}


def other_weights(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    next(iter(state.values())).reshape(-1)[0] += 1.0
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def other_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"bread"', '"braed"'))


def other_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.5}))


def other_chat(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("Other: " + PLAIN_TEMPLATE)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (other_weights, "weights"),
        (other_tokenizer, "tokenizer"),
        (other_config, "config"),
        (other_chat, "template"),
    ],
)
def test_a_change_of_one_kind_of_file_is_reported_as_that_kind(
    folder: Path, change: Callable[[Path], None], kind: str
) -> None:
    assert changed_kinds(folder, lambda: change(folder)) == {kind}


def test_what_loading_does_not_read_is_no_change_and_neither_is_a_move(folder: Path, tmp_path: Path) -> None:
    before = of_model(str(folder))
    (folder / "README.md").write_text("training went on")
    (folder / "trainer_state.json").write_text("{}")
    (folder / "step-000100").mkdir()
    (folder / "step-000100" / "model.safetensors").write_bytes(b"other")
    os.utime(folder / "model.safetensors", (1, 1))
    assert of_model(str(folder)) == before
    assert of_model(str(shutil.move(folder, tmp_path / "moved"))) == before


def test_the_template_and_the_adapter_that_are_put_on_count(folder: Path, tmp_path: Path) -> None:
    jinja = tmp_path / "mine.jinja"
    jinja.write_text(PLAIN_TEMPLATE)
    assert changed_kinds(folder, lambda: jinja.write_text("x" + PLAIN_TEMPLATE), template=str(jinja)) == {"template"}  # fmt: skip
    jinja.write_text(PLAIN_TEMPLATE)
    assert of_model(str(folder), template="plain") == of_model(str(folder), template=str(jinja))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    save_file({"a": torch.zeros(3)}, adapter / "adapter_model.safetensors")
    plain, adapted = of_model(str(folder)).identity, of_model(f"{folder}+{adapter}").identity
    assert {k: v for k, v in adapted.items() if k != "adapter"} == plain
    save_file({"a": torch.ones(3)}, adapter / "adapter_model.safetensors")
    assert of_model(f"{folder}+{adapter}").identity["adapter"] != adapted["adapter"]


def test_dtype_and_device_are_as_resolved(folder: Path) -> None:
    auto = of_model(str(folder)).circumstance
    assert set(auto) == {"dtype", "device"}
    assert "auto" not in auto.values()
    half = of_model(str(folder), dtype="bfloat16")
    assert half.circumstance["dtype"] == "bfloat16"
    assert half.identity == of_model(str(folder), dtype="float32").identity


@pytest.mark.parametrize("place", ["small", "first", "middle", "last"])
def test_of_a_large_file_every_small_tensor_and_both_ends_of_large_ones_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(provenance, "WHOLE", 1000)
    path = tmp_path / "model.safetensors"
    tensors = {"large": torch.zeros(600_000), "norm": torch.zeros(20)}
    save_file(tensors, path)
    before = of_files(path)
    at = {"first": 0, "last": -1}
    if place == "small":
        tensors["norm"][7] = 1
    elif place == "middle":
        tensors["large"] += 1e-3
    else:
        tensors["large"][at[place]] = 1
    save_file(tensors, path)
    assert of_files(path) != before


def test_a_large_file_of_another_kind_is_sampled_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "WHOLE", 1000)
    path = tmp_path / "pytorch_model.bin"
    content = bytearray(b"PK\x03\x04" * 1_000_000)
    path.write_bytes(content)
    before = of_files(path)
    content[-1] ^= 1
    path.write_bytes(content)
    assert of_files(path) != before


def test_a_hub_model_is_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def cached(repo: str, name: str, revision: str | None) -> str:
        return str(tmp_path / repo / "snapshots" / (revision or "0123abc") / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", cached)
    assert of_model("owner/name").identity == {"commit": "0123abc"}
    assert of_model("owner/name@v2").identity == {"commit": "v2"}


def test_a_judge_is_bound_to_its_model_its_file_and_its_members(folder: Path, tmp_path: Path) -> None:
    key = tmp_path / "key.csv"
    key.write_text("prompt,answer,refusal\na,b,c\n")
    assert judge_sources("rules") == {}
    loading = {"dtype": "float32", "template": "plain"}
    found = judge_sources(f"majority:rules,logit:{folder},key:{key}", loading=loading)
    assert found == {
        f"judge logit:{folder}": of_model(str(folder), **loading),
        f"judge key:{key}": of_files(key),
    }
    assert set(judge_sources(f"strongreject:{folder}")) == {f"judge strongreject:{folder}"}


# -- experiments ------------------------------------------------------------------------------------


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_csv(small_prompts(8), tmp_path / "prompts.csv")


class Cut(Exception):
    """The run was interrupted."""


def interrupting(word: str) -> Progress:
    def say(line: str) -> None:
        if word in line:
            raise Cut

    return say


def study_of(folder: Path, prompts: Path, **changed: Any) -> StudyConfig:
    fields: dict[str, Any] = {
        "systems": (str(folder),),
        "prompts": str(prompts),
        "anchors": str(prompts),
        "judges": ("rules",),
        "layer": 2,
        "max_new_tokens": 4,
        "dtype": "float32",
        "device": "cpu",
        "selfjudge": False,
        "nll": False,
        "controls": 0,
    }
    return StudyConfig(**fields | changed)


def parts_of(path: Path) -> dict[str, bytes]:
    found = (p for p in path.rglob("*") if p.suffix in (".parquet", ".safetensors", ".csv"))
    return {str(p.relative_to(path)): p.read_bytes() for p in found}


def test_a_study_of_changed_weights_is_refused_half_done_and_done(
    folder: Path, prompts: Path, tmp_path: Path
) -> None:
    config, run = study_of(folder, prompts), tmp_path / "run"
    with pytest.raises(Cut):
        run_study(config, run, say=interrupting("edited: "))
    kept = tmp_path / "kept.safetensors"
    shutil.copy(folder / "model.safetensors", kept)
    other_weights(folder)
    before = parts_of(run)
    with pytest.raises(MechsafetyError, match=r"weights.* -> .*out="):
        run_study(config, run)
    assert parts_of(run) == before
    shutil.copy(kept, folder / "model.safetensors")
    run_study(config, run)  # what was there is back
    whole = run_study(config, tmp_path / "whole").path
    assert parts_of(run) == parts_of(whole)
    other_weights(folder)
    with pytest.raises(
        MechsafetyError, match="weights"
    ):  # a finished run is no answer about other weights either
        run_study(config, run)
    with pytest.raises(MechsafetyError, match="weights"):
        run_study(config, run, allow_other_versions=True)


@pytest.mark.parametrize(
    ("change", "said"), [(other_tokenizer, "tokenizer"), (other_chat, "template"), (other_config, "config")]
)
def test_a_study_of_another_tokenizer_template_or_configuration_is_refused(
    folder: Path, prompts: Path, tmp_path: Path, change: Callable[[Path], None], said: str
) -> None:
    config = study_of(folder, prompts)
    with pytest.raises(Cut):
        run_study(config, tmp_path / "run", say=interrupting("layer sweep"))
    change(folder)
    with pytest.raises(MechsafetyError, match=said):
        run_study(config, tmp_path / "run")


def test_a_study_goes_on_under_other_versions_only_where_that_is_allowed(
    folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = study_of(folder, prompts), tmp_path / "run"
    with pytest.raises(Cut):
        run_study(config, run, say=interrupting("edited: "))
    real = runs.versions()
    monkeypatch.setattr(runs, "versions", lambda: real | {"transformers": "0.0.1"})
    with pytest.raises(MechsafetyError, match="allow_other_versions=True"):
        run_study(config, run)
    run_study(config, run, allow_other_versions=True)
    monkeypatch.undo()
    assert parts_of(run) == parts_of(run_study(config, tmp_path / "whole").path)
    assert len(read_run(run).manifest["sessions"]) == 2


def test_weights_that_change_while_a_study_runs_are_noticed_before_they_are_loaded(
    tiny_folder: Callable[..., Path], folder: Path, prompts: Path, tmp_path: Path
) -> None:
    config = study_of(folder, prompts, systems=(str(tiny_folder("gpt2")), str(folder)))

    def say(line: str) -> None:
        if line.startswith("[1/2]"):
            other_weights(folder)

    with pytest.raises(MechsafetyError, match="weights"):
        run_study(config, tmp_path / "run", say=say)


def test_a_study_is_bound_to_its_judges_models_too(
    tiny_folder: Callable[..., Path], folder: Path, prompts: Path, tmp_path: Path
) -> None:
    judge = f"logit:{folder}"
    config = study_of(tiny_folder("gpt2"), prompts, judges=("rules", judge))
    with pytest.raises(Cut):
        run_study(config, tmp_path / "run", say=interrupting("original: judge logit"))
    other_weights(folder)
    with pytest.raises(MechsafetyError, match=re.escape(f"judge {judge}.weights")):
        run_study(config, tmp_path / "run")


def sweep_of(folder: Path, prompts: Path, **changed: Any) -> SweepConfig:
    fields: dict[str, Any] = {
        "model": str(folder),
        "prompts": str(prompts),
        "positions": "last",
        "resamples": 5,
        "dtype": "float32",
        "device": "cpu",
    }
    return SweepConfig(**fields | changed)


def test_a_sweep_is_of_one_model_template_prompt_file_and_number_format(
    folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jinja = tmp_path / "mine.jinja"
    jinja.write_text(PLAIN_TEMPLATE)
    config, run = sweep_of(folder, prompts, template=str(jinja), dtype="auto"), tmp_path / "run"
    with pytest.raises(Cut):
        run_sweep(config, run, say=interrupting("stability"))
    # auto is another format on another machine
    now = of_model(str(folder)).circumstance["dtype"]
    other = {"float32": torch.bfloat16, "bfloat16": torch.float32}[now]
    monkeypatch.setattr(provenance, "resolve_dtype", lambda *_: other)
    with pytest.raises(MechsafetyError, match=f"{now}.*allow_other_versions=True"):
        run_sweep(config, run)
    monkeypatch.undo()
    jinja.write_text("Well, " + PLAIN_TEMPLATE)
    with pytest.raises(MechsafetyError, match="template"):
        run_sweep(config, run)
    jinja.write_text(PLAIN_TEMPLATE)
    kept = prompts.read_text()
    prompts.write_text(kept.replace("bread", "river"))
    with pytest.raises(MechsafetyError, match="prompts_sha256"):
        run_sweep(config, run)
    prompts.write_text(kept)
    run_sweep(config, run)
    whole = run_sweep(config, tmp_path / "whole").path
    assert parts_of(run) == parts_of(whole)


def test_answers_are_of_one_model_and_one_edit(folder: Path, prompts: Path, tmp_path: Path) -> None:
    edit, model = tmp_path / "edit.safetensors", load_model(str(folder), dtype="float32", device="cpu")
    save_edit(Ablate(torch.ones(32)), edit, model=model)
    fields = {"model": str(folder), "prompts": str(prompts), "edit": f"saved({edit}, any_weights=true)"}
    config = GenerationConfig(**fields, max_new_tokens=3, dtype="float32", device="cpu")
    run = run_generation(config, tmp_path / "run").path
    before = parts_of(run)
    save_edit(Ablate(torch.arange(32.0)), edit, model=model)
    with pytest.raises(MechsafetyError, match="edit_sha256"):
        run_generation(config, run)
    save_edit(Ablate(torch.ones(32)), edit, model=model)
    run_generation(config, run)
    assert parts_of(run) == before
    other_weights(folder)
    with pytest.raises(MechsafetyError, match="weights"):
        run_generation(config, run)
    assert parts_of(run) == before


LOADING: dict[str, Any] = {"dtype": "float32", "device": "cpu"}


def regions(folder: Path, _base: Path, prompts: Path, out: Path, say: Progress) -> object:
    config = RegionsConfig(
        model=str(folder), prompts=str(prompts), parts=("structure",), examples=4, **LOADING
    )
    return run_regions(config, out, say=say)


def ladder(folder: Path, _base: Path, prompts: Path, out: Path, say: Progress) -> object:
    config = LadderConfig(systems=(str(folder),), prompts=str(prompts), counts=(1,), **LOADING)
    return run_ladder(config, out, say=say)


def robustness(folder: Path, _base: Path, prompts: Path, out: Path, say: Progress) -> object:
    config = RobustnessConfig(model=str(folder), prompts=str(prompts), attacks=("vanilla",), **LOADING)
    return run_robustness(config, out, say=say)


def anatomy(folder: Path, base: Path, prompts: Path, out: Path, say: Progress) -> object:
    models = {"base": str(base), "tuned": str(folder), "judge": "rules"}
    config = AnatomyConfig(**models, prompts=str(prompts), parts=("sensitivity",), **LOADING)
    return run_anatomy(config, out, say=say)


def comparison(folder: Path, base: Path, prompts: Path, out: Path, say: Progress) -> object:
    return run_comparison(
        [str(base), str(folder)], load_prompts(prompts), out=out, seed=0, say=say, **LOADING
    )


BEGUN = {
    regions: "own answers",
    ladder: "directions and layer",
    robustness: "vanilla: ",
    anatomy: "sensitivity",
    comparison: "residual streams",
}
TEMPLATES_CHANGE = (regions, comparison)
"""Tried with another template on every run; the other experiments with other weights."""


@pytest.mark.parametrize(
    ("experiment", "change", "said"),
    [
        pytest.param(
            experiment,
            change,
            said,
            marks=() if (experiment in TEMPLATES_CHANGE) == (said == "template") else pytest.mark.slow,
        )
        for experiment in BEGUN
        for change, said in ((other_weights, "weights"), (other_chat, "template"))
    ],
)
def test_every_experiment_is_of_one_model(
    folder: Path,
    prompts: Path,
    tmp_path: Path,
    experiment: Callable[..., object],
    change: Callable[[Path], None],
    said: str,
) -> None:
    begun = BEGUN[experiment]
    base = save_tiny(tmp_path / "base", "llama", seed=1)
    for _ in range(2):  # interrupted, and again: what has not changed goes on
        with pytest.raises(Cut):
            experiment(folder, base, prompts, tmp_path / "run", interrupting(begun))
    change(folder)
    with pytest.raises(MechsafetyError, match=f"{said}: .*out="):
        experiment(folder, base, prompts, tmp_path / "run", lambda _: None)


def test_models_are_identified_by_name(folder: Path) -> None:
    assert of_models(str(folder), dtype="float32") == {
        f"model {folder}": of_model(str(folder), dtype="float32")
    }


def test_an_adapter_on_the_hub_is_identified_with_its_base(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import EntryNotFoundError

    snapshot = tmp_path / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))

    def download(repo: str, name: str, *, revision: str | None = None) -> str:
        if not (snapshot / name).is_file():
            raise EntryNotFoundError(name)
        return str(snapshot / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    before = provenance.of_classifier("some/adapter").identity
    assert before["commit"] == "c0ffee"
    assert before["base weights"] == of_model(str(folder)).identity["weights"]
    save_tiny(folder, "llama", seed=5)  # other weights under the name of the base
    after = provenance.of_classifier("some/adapter").identity
    assert [name for name in before if before[name] != after[name]] == ["base weights"]
    # The control: a whole model names no base.
    (snapshot / "adapter_config.json").rename(snapshot / "config.json")
    assert provenance.of_classifier("some/adapter").identity == {"commit": "c0ffee"}
