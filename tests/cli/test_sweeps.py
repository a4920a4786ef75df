"""``mechsafety sweep`` and ``mechsafety generate``: whole runs, resumed runs, and every mistake in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result

from mechsafety import cli
from mechsafety.directions.activations import residual_stream
from mechsafety.directions.direction import find_directions
from mechsafety.directions.files import load_directions
from mechsafety.edits.files import load_edit
from mechsafety.edits.interventions import digest
from mechsafety.experiments.registry import load_run
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.sweeps.behaviour import treated_as_labelled
from mechsafety.sweeps.candidates import BatchedScorer
from mechsafety.sweeps.measures import refusal_measure
from mechsafety.sweeps.openings import own_refusals
from tests.conftest import save_tiny
from tests.prompt_sets import small_prompts, write_csv

pytestmark = pytest.mark.usefixtures("unpublished")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(a) for a in arguments])


def succeed(*arguments: object) -> Any:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(small_prompts(10), tmp_path_factory.mktemp("prompts") / "p.csv")


def options(model: Path, prompts: Path, out: Path, *more: object) -> list[object]:
    return ["sweep", model, "--prompts", prompts, "--limit", 9, "--dtype", "float32", "--out", out, *more]


@pytest.fixture(scope="module")
def finished(
    tiny_folder: Callable[..., Path], prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("runs") / "sweep"
    more = ["--method", "mean_difference", "--method", "leace", "--positions", "-2,-1", "--doses", "all"]
    more += ["--controls", "1", "--resamples", "20"]
    shown = succeed(
        *options(tiny_folder("llama"), prompts, out, *more, "--dose-prompts", 2, "--max-new-tokens", 3)
    )
    assert shown["run"] == str(out)
    assert len(shown["scores"]) == 2 * 2 * 5
    return out


@pytest.mark.published
def test_a_run_holds_its_tables_edit_figures_and_page(
    finished: Path, tiny_folder: Callable[..., Path], tiny: Callable[..., Any]
) -> None:
    for name in ("sweep.csv", "profile.csv", "lens.csv", "stability.csv", "doses.csv", "report.html"):
        assert (finished / name).stat().st_size > 20
    manifest = json.loads((finished / "manifest.json").read_text())
    edit = load_edit(finished / "edit.safetensors", model=tiny("llama"))
    assert digest(edit) == manifest["edit"]["sha256"]
    figures = load_run(finished).figures()
    assert list(figures) == [
        "scores-mean_difference",
        "layers-mean_difference",
        "scores-leace",
        "layers-leace",
        "methods",
        "stability",
        "profile",
        "lens",
        "doses",
    ]
    for figure in figures.values():
        assert figure.layout.title.text
    page = (finished / "report.html").read_text()
    assert 'src="http' not in page
    for heading in ("Stability of the selection", "Removal and damage by dose"):
        assert heading in page
    written = succeed("figures", finished)["figures"]
    assert len(written) == len(figures)
    assert succeed("report", finished)["report"] == str(finished / "report.html")
    # The recorded table replays to what the run selected.
    chosen = manifest["selections"]["leace"]["selection"]
    replayed = call("select", finished / "sweep.parquet", "--layers", 4, "--method", "leace", "--json")
    if chosen["rule"] == "nearest":
        assert "leaves none of" in json.loads(replayed.stdout)["error"]
    else:
        assert json.loads(replayed.stdout)["layer"] == chosen["layer"]


def test_an_interrupted_run_goes_on_and_ends_the_same(
    tiny_folder: Callable[..., Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, last = tiny_folder("llama"), ("--positions", "last", "--confirm", 0, "--resamples", 20)
    whole = succeed(*options(model, prompts, tmp_path / "whole", *last))
    score, calls = BatchedScorer.score, []

    def once(self: BatchedScorer, candidates: Any, *prompts: Any) -> Any:
        calls.append(len(candidates))
        if len(calls) == 1:
            raise KeyboardInterrupt
        return score(self, candidates, *prompts)

    monkeypatch.setattr(BatchedScorer, "score", once)
    stopped = call(*options(model, prompts, tmp_path / "cut", *last))
    assert stopped.exit_code == 130
    assert "goes on where it stopped" in stopped.stderr
    resumed = succeed(*options(model, prompts, tmp_path / "cut", *last))
    assert resumed["scores"] == whole["scores"]
    done = len(calls)
    again = succeed(*options(model, prompts, tmp_path / "cut", *last))
    assert (again["selected"], len(calls)) == (whole["selected"], done)
    other = call(*options(model, prompts, tmp_path / "cut", *last[2:], "--positions", "-2,-1"))
    assert other.exit_code == 2
    assert "has another configuration (positions" in other.stderr


@pytest.mark.published
def test_answers_under_every_dose_are_kept_once_and_another_judge_reads_them(
    finished: Path,
    tiny_folder: Callable[..., Path],
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    answers, doses = load_run(copy).responses(), load_run(copy).to_frame("doses")
    states = answers.drop_duplicates(["family", "dose", "direction"])
    edited = doses[doses["dose"] != "unedited"]
    assert len(states) == len(edited) + 1
    assert len(answers) == 4 * len(states)
    assert not answers.duplicated(["family", "dose", "direction", "id"]).any()
    monkeypatch.setattr("mechsafety.sweeps.doses.answered", lambda *_, **__: pytest.fail("generated"))
    shown = succeed("judge", copy, "--judge", "phrases:arditi")
    assert len(shown["rates"]) == 2 * len(states)
    assert (copy / "added_judges.csv").is_file()
    assert "Judges added after the run" in (copy / "report.html").read_text()


def one_class(folder: Path) -> Path:
    kept = tuple(p for p in small_prompts(10) if p.label == "harmful")
    return write_csv(PromptSet(kept), folder / "harmful.csv")


def no_validation(folder: Path) -> Path:
    kept = tuple(p for p in small_prompts(10) if p.split != "validation")
    return write_csv(PromptSet(kept), folder / "novalidation.csv")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--layers", "9"], "layers 9 do not exist: this model's are 0 to 4"),
        (["--layers", "four"], "--layers 'four': whole numbers and spans such as 3,10-20 are expected"),
        (["--layers", "7-3"], "is empty or too long"),
        (["--positions", "first"], "--positions 'first'"),
        (["--positions", "3"], "offsets from the end are -1, -2"),
        (["--positions", "-400"], "lies before the shortest prompt"),
        (["--rule", "best"], "'best' is not one of auto, arditi"),
        (["--limit", "0"], "validation: Input should be greater than or equal to 2"),
        (["--refusal-tokens", " "], "must hold at least one token"),
    ],
)
def test_wrong_options_are_one_line(
    tiny_folder: Callable[..., Path], prompts: Path, tmp_path: Path, more: list[str], said: str
) -> None:
    result = call(*options(tiny_folder("llama"), prompts, tmp_path / "run", *more))
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("error:") == 1
    assert "Traceback" not in result.output


def test_wrong_prompts_models_and_templates_are_one_line(
    tiny_folder: Callable[..., Path], prompts: Path, tmp_path: Path
) -> None:
    model = tiny_folder("llama")
    bare = save_tiny(tmp_path / "bare", template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    for arguments, said in (
        (options(model, one_class(tmp_path), tmp_path / "a"), "has no harmless prompts in split 'fit'"),
        (options(model, no_validation(tmp_path), tmp_path / "b"), "no harmful prompts in split 'validation'"),
        (options(tmp_path / "none", prompts, tmp_path / "c"), "does not exist"),
        (options(bare, prompts, tmp_path / "d"), "puts no token after the user's text"),
    ):
        result = call(*arguments)
        assert result.exit_code == 2
        assert said in result.stderr


# -- generate -----------------------------------------------------------------------------------------


def generation(model: Path, prompts: Path, out: Path, *more: object) -> list[object]:
    base = [
        "generate",
        model,
        "--prompts",
        prompts,
        "--limit",
        4,
        "--max-new-tokens",
        6,
        "--dtype",
        "float32",
    ]
    return [*base, "--out", out, *more]


def test_generate_under_a_saved_edit_an_expression_and_weights(
    finished: Path, tiny_folder: Callable[..., Path], prompts: Path, tmp_path: Path
) -> None:
    model = tiny_folder("llama")
    saved = tmp_path / "again.safetensors"
    plain = succeed(*generation(model, prompts, tmp_path / "plain"))
    hooked = succeed(
        *generation(
            model, prompts, tmp_path / "e", "--edit", finished / "edit.safetensors", "--save-edit", saved
        )
    )
    baked = succeed(*generation(model, prompts, tmp_path / "b", "--edit", saved, "--baked"))
    assert plain["edit"] is None
    assert hooked["edit"]["sha256"] == baked["edit"]["sha256"]
    assert (hooked["edit"]["as"], baked["edit"]["as"]) == ("hooks", "weights")
    texts = {
        name: pd.read_parquet(tmp_path / name / "responses.parquet").set_index("id")["response"]
        for name in ("plain", "e", "b")
    }
    assert texts["e"].equals(texts["b"])
    assert not texts["e"].equals(texts["plain"])
    assert json.loads((tmp_path / "e" / "manifest.json").read_text())["generation"]["coverage"]["hooks"] == 12
    # What it says to run next works.
    judged = succeed("judge", tmp_path / "e" / "responses.parquet", "--judge", "rules")
    assert sum(judged["counts"]["rules"].values()) == 8
    random = succeed(*generation(model, prompts, tmp_path / "r", "--edit", "ablate(random, seed=1)"))
    assert random["edit"]["description"].startswith("Ablate(k=1")


def test_generate_goes_on_where_it_stopped(
    tiny_folder: Callable[..., Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mechsafety.generation import completions as module

    model = tiny_folder("llama")
    succeed(*generation(model, prompts, tmp_path / "whole", "--batch-size", 3))
    generate, calls = module.hf_answers, []

    def third(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(*arguments)

    monkeypatch.setattr(module, "hf_answers", third)
    assert call(*generation(model, prompts, tmp_path / "cut", "--batch-size", 3)).exit_code == 130
    succeed(*generation(model, prompts, tmp_path / "cut", "--batch-size", 3))
    assert len(calls) == 4  # two, the broken one, and that one again
    assert (tmp_path / "cut" / "responses.csv").read_bytes() == (
        tmp_path / "whole" / "responses.csv"
    ).read_bytes()


def test_cells_that_a_spreadsheet_would_run_are_neutralised(tmp_path: Path) -> None:
    from mechsafety.runs.folder import open_run

    table = pd.DataFrame({"a": ["=1+1", "+x", "-x", "@x", "\tx", "fine"], "n": [-1, 2, 3, 4, 5, 6]})
    with open_run(tmp_path / "run", config={}) as run:
        run.write_table(table, "t.csv")
        run.write_table(table, "t.parquet")
        back = run.read_table("t.csv")
        assert list(back["a"]) == ["'=1+1", "'+x", "'-x", "'@x", "'\tx", "fine"]
        assert list(back["n"]) == list(table["n"])
        pd.testing.assert_frame_equal(run.read_table("t.parquet"), table)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--edit", "none.safetensors"], "edit file 'none.safetensors' does not exist"),
        (["--edit", "ablate(random, alpha=x)"], "alpha=x is not a number"),
        (["--baked"], "--baked writes an edit into the weights: name one with --edit"),
        (["--edit", "ablate(random, alpha=0.5)", "--baked"], "has no weight form"),
        (["--limit", "0"], "limit: Input should be greater than or equal to 1"),
        (["--temperature", "-1"], "temperature: Input should be greater than 0"),
        (["--edit", "ablate(random)", "--save-edit", "edit.pt"], "must end in .safetensors"),
    ],
)
def test_generate_mistakes_are_one_line(
    tiny_folder: Callable[..., Path], prompts: Path, tmp_path: Path, more: list[str], said: str
) -> None:
    result = call(*generation(tiny_folder("llama"), prompts, tmp_path / "run", *more))
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_generate_from_a_split_that_is_empty_is_one_line(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    prompts = no_validation(tmp_path)
    result = call(*generation(tiny_folder("llama"), prompts, tmp_path / "run", "--split", "validation"))
    assert result.exit_code == 2
    assert "has no prompts in split 'validation'" in result.stderr


def test_a_direction_is_found_on_what_the_model_does_or_on_all_prompts(
    tiny_folder: Callable[..., Path], tiny_kept: Callable[..., Any], tmp_path: Path
) -> None:
    prompts = small_prompts(20)
    model, path = tiny_kept("llama"), write_csv(prompts, tmp_path / "p.csv")
    own = own_refusals(model, prompts.validation, seed=0)
    measure = refusal_measure(model, prompts.validation, refusals=own)
    kept = treated_as_labelled(model, prompts.fit, measure=measure.taken)
    counts = {"harmful": len(kept.harmful), "harmless": len(kept.harmless)}
    assert counts != {"harmful": 20, "harmless": 20}
    options = ("direction", tiny_folder("llama"), "--prompts", path, "--dtype", "float32")
    shown = succeed(*options, "--out", tmp_path / "own.safetensors")
    assert (shown["fit_on"], shown["fit_prompts_used"]) == ("behaviour", counts)
    found = load_directions(tmp_path / "own.safetensors")
    torch.testing.assert_close(found.vectors, find_directions(residual_stream(model, kept), seed=0).vectors)
    shown = succeed(*options, "--fit-on", "labels")
    assert shown["fit_prompts_used"] == {"harmful": 20, "harmless": 20}
    refused = call(*options[:3], no_validation(tmp_path))
    assert (refused.exit_code, "split 'validation'" in refused.stderr) == (2, True)
