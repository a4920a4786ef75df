"""``mechsafety generate``: answers in a run folder, the same however the edit is given and however often it stops."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mechsafety.directions.activations import residual_stream
from mechsafety.directions.direction import find_directions
from mechsafety.experiments.generation.config import GenerationConfig
from mechsafety.experiments.generation.experiment import run_generation
from mechsafety.generation import resumable as resumable_generation
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.runs.folder import neutralised, read_run
from tests.cli.test_base import call, judged_anew, succeed
from tests.prompt_sets import small_prompts, write_csv

pytestmark = pytest.mark.usefixtures("unpublished")

COLUMNS = ["id", "prompt", "label", "category", "response", "finish", "n_prompt_tokens", "n_tokens"]


@pytest.fixture
def work(tiny_folder: Callable[..., Path], tiny: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """``work("--edit", X, out="a")``: the arguments of one small generate command."""
    prompts = write_csv(small_prompts(), tmp_path / "prompts.csv")
    model = tiny("llama")
    find_directions(residual_stream(model, small_prompts().fit), resamples=1).save(tmp_path / "d.safetensors")

    def arguments(*more: object, out: str = "run", model: object = None) -> list[object]:
        folder = tiny_folder("llama") if model is None else model
        fixed = ["--device", "cpu", "--dtype", "float32", "--max-new-tokens", 6, "--batch-size", 4]
        return ["generate", folder, "--prompts", prompts, *fixed, "--out", tmp_path / out, *more]

    return arguments


def answers(folder: Path) -> dict[str, str]:
    table = pd.read_parquet(folder / "responses.parquet")
    return dict(zip(table["id"], table["response"], strict=True))


# -- the run --------------------------------------------------------------------------------------------


def test_answers_lie_in_a_run_folder_and_the_next_command_works(
    work: Callable[..., Any], tmp_path: Path
) -> None:
    text = f"ablate({tmp_path / 'd.safetensors'}, layer=2, alpha=0.5)"
    shown = succeed(*work("--edit", text, "--limit", 2, out="my run"))
    run = tmp_path / "my run"
    table = pd.read_parquet(run / "responses.parquet")
    assert list(table.columns) == COLUMNS
    assert table["label"].value_counts().to_dict() == {"harmful": 2, "harmless": 2}
    report = {p.id: p for p in small_prompts().report}
    assert all(report[i].text == prompt for i, prompt in zip(table["id"], table["prompt"], strict=True))
    assert set(table["finish"]) <= {"stop", "length"}
    with (run / "responses.csv").open(encoding="utf-8", newline="") as stream:
        assert [row["id"] for row in csv.DictReader(stream)] == list(table["id"])
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["edit"]["description"].startswith("Ablate(k=1, alpha=0.5")
    assert manifest["config"]["edit_sha256"] == manifest["edit"]["sha256"]
    assert next(iter(manifest["models"].values()))["n_layers"] == 4
    generation = manifest["generation"]
    assert generation["responses"] == 4
    assert generation["coverage"]["hooks"] == 12
    assert generation["coverage"]["positions"] > 0
    assert "Ablate(k=1, alpha=0.5" in shown
    assert " of 4 (" in shown
    following = shlex.split(shown.splitlines()[-1].removeprefix("next:").strip())
    assert following == ["mechsafety", "judge", str(run / "responses.parquet"), "--judge", "rules"]
    counts = succeed(*following[1:], "--json")["counts"]["rules"]
    assert sum(counts.values()) == 4


def test_one_edit_gives_the_same_answers_however_it_is_given(
    work: Callable[..., Any], tmp_path: Path
) -> None:
    text = f"ablate({tmp_path / 'd.safetensors'}, layer=2)"
    saved = tmp_path / "e.safetensors"
    facts = succeed(*work("--edit", text, "--save-edit", saved, "--json", out="a"))
    assert facts["saved_edit"] == str(saved)
    assert facts["n"] == 12
    again = succeed(*work("--edit", saved, "--json", out="b"))
    baked = succeed(*work("--edit", saved, "--baked", "--json", out="c"))
    plain = succeed(*work("--json", out="d"))
    assert facts["edit"]["sha256"] == again["edit"]["sha256"] == baked["edit"]["sha256"]
    assert (facts["edit"]["as"], baked["edit"]["as"], plain["edit"]) == ("hooks", "weights", None)
    assert answers(tmp_path / "a") == answers(tmp_path / "b") == answers(tmp_path / "c")
    # The control: the edit changes answers, and a random direction changes them otherwise.
    succeed(*work("--edit", "ablate(random, seed=3)", out="e"))
    assert answers(tmp_path / "a") != answers(tmp_path / "d")
    assert answers(tmp_path / "a") != answers(tmp_path / "e")


@pytest.mark.parametrize(
    ("edit", "baked"),
    [
        ("affine({d}, layer=2)", False),
        ("add({d}, layer=2, coefficient=-1, positions=generated)", False),
        ("orthogonalise({d}, layer=2, writers=attn_out+mlp_out)", True),
        ("orthogonalise({d}, layer=2, norm_preserving=true)", True),
    ],
)
def test_every_kind_of_edit_can_answer(
    work: Callable[..., Any], tmp_path: Path, edit: str, baked: bool
) -> None:
    options = ["--edit", edit.format(d=tmp_path / "d.safetensors"), *(["--baked"] if baked else [])]
    facts = succeed(*work(*options, "--limit", 1, "--json"))
    assert facts["n"] == 2
    recorded = read_run(tmp_path / "run").manifest
    assert recorded["edit"] == facts["edit"]
    assert ("coverage" in recorded["generation"]) != baked


def test_sampled_answers_depend_on_the_seed_alone(work: Callable[..., Any], tmp_path: Path) -> None:
    drawn = ["--temperature", 1.5, "--top-p", 0.95]
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        succeed(*work(*drawn, "--seed", seed, out=out))
    assert answers(tmp_path / "a") == answers(tmp_path / "b") != answers(tmp_path / "c")


@pytest.mark.parametrize("sampled", [False, True])
def test_an_interrupted_run_goes_on_and_ends_the_same(
    work: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampled: bool
) -> None:
    options = ["--edit", "ablate(random)", *(["--temperature", 2.0] if sampled else [])]
    succeed(*work(*options, out="whole"))
    real = resumable_generation.generate
    asked: list[int] = []

    def stopping(*given: Any, on_batch: Any, plan: Any, **options: Any) -> Any:
        asked.append(len(plan))

        def stop_after_one(finished: Any) -> None:
            on_batch(finished)
            if len(asked) == 1:
                raise KeyboardInterrupt

        return real(*given, on_batch=stop_after_one, plan=plan, **options)

    monkeypatch.setattr(resumable_generation, "generate", stopping)
    result = call(*work(*options, out="cut"))
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "interrupted; the same command goes on where it stopped"
    assert not (tmp_path / "cut" / "responses.parquet").exists()
    succeed(*work(*options, out="cut"))
    assert asked == [3, 2]
    for name in ("responses.parquet", "responses.csv"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert read_run(tmp_path / "cut").manifest["generation"]["responses"] == 8
    # A finished run generates nothing more.
    succeed(*work(*options, out="cut"))
    assert asked == [3, 2]


def test_the_model_is_as_it_was_after_a_baked_run(
    work: Callable[..., Any],
    tiny_folder: Callable[..., Path],
    tiny: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mechsafety.experiments import edited

    model = tiny("llama")
    before = {name: p.clone() for name, p in model.original_model.named_parameters()}
    monkeypatch.setattr(edited, "load_model", lambda *_, **__: model)
    config = GenerationConfig(
        model=str(tiny_folder("llama")),
        prompts=str(tmp_path / "prompts.csv"),
        limit=1,
        max_new_tokens=3,
        edit="ablate(random)",
    )
    result = run_generation(config.model_copy(update={"baked": True}), tmp_path / "baked")
    assert len(result.responses()) == 2
    assert "Ablate" in result._repr_html_()
    after = dict(model.original_model.named_parameters())
    assert all(torch_equal(before[name], after[name]) for name in before)


def torch_equal(a: Any, b: Any) -> bool:
    import torch

    return torch.equal(a, b)


@pytest.mark.published
def test_another_judge_reads_the_answers_and_nothing_is_generated_again(
    work: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeed(*work("--limit", 2))
    run = tmp_path / "run"
    kept = (run / "responses.parquet").read_bytes()
    monkeypatch.setattr(resumable_generation, "generate", refuse)
    rates = judged_anew(run)
    assert (run / "responses.parquet").read_bytes() == kept
    assert rates["n"].tolist() == [2, 2, 2, 2]  # every answer of each label, by each judge


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("generated again")


# -- text that a spreadsheet would run ----------------------------------------------------------------


def test_formulas_are_neutralised_in_the_csv_and_only_there(work: Callable[..., Any], tmp_path: Path) -> None:
    risky = ["=cmd", "+1", "-1", "@sum"]
    prompts = [
        p.__class__(**(vars(p) | {"text": text}))
        for p, text in zip(small_prompts().report, [*risky, "a=b", "'quoted"], strict=False)
    ]
    write_csv(PromptSet(tuple(prompts), "risky"), tmp_path / "risky.csv")
    succeed(*work("--prompts", tmp_path / "risky.csv"))
    table = pd.read_parquet(tmp_path / "run" / "responses.parquet")
    with (tmp_path / "run" / "responses.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    texts = [p.text for p in prompts]
    assert list(table["prompt"]) == texts
    assert [row["prompt"] for row in rows] == ["'=cmd", "+1", "-1", "'@sum", "a=b", "'quoted"]


def test_numbers_and_missing_cells_are_left_alone() -> None:
    table = pd.DataFrame({"n": [-1.5, 2.0], "text": ["-1", None], "mixed": [-3, "=x"], "whole": [-1, 1]})
    assert list(neutralised(pd.DataFrame({"a": ["\tx", "\rx", " =x"]}))["a"]) == ["'\tx", "'\rx", " =x"]
    safe = neutralised(table)
    assert list(safe["n"]) == [-1.5, 2.0]
    assert list(safe["whole"]) == [-1, 1]
    assert safe["text"].iloc[0] == "-1"
    assert pd.isna(safe["text"].iloc[1])
    assert list(safe["mixed"]) == [-3, "'=x"]
    assert table["text"].iloc[0] == "-1"


# -- mistakes -----------------------------------------------------------------------------------------

MISTAKES = [
    (["--limit", "0"], "limit: Input should be greater than or equal to 1"),
    (["--max-new-tokens", "0"], "max_new_tokens: "),
    (["--batch-size", "0"], "batch_size: "),
    (["--temperature", "0"], "temperature: "),
    (["--temperature", "nan"], "temperature: "),
    (["--temperature", "1", "--top-p", "2"], "top_p: "),
    (["--top-p", "0.5"], "--top-p 0.5 is about drawing tokens: give --temperature too"),
    (["--baked"], "--baked writes an edit into the weights: name one with --edit"),
    (["--save-edit", "{tmp}/e.safetensors"], "--save-edit saves an edit: name one with --edit"),
    (["--edit", "ablate(random)", "--save-edit", "{tmp}/e.pt"], "must end in .safetensors, e.g. e.safetens"),
    (["--edit", "ablate(random)", "--save-edit", "{tmp}/no/e.safetensors"], "no' does not exist"),
    (["--edit", "{tmp}/none.safetensors"], "none.safetensors' does not exist"),
    (["--edit", "{tmp}/prompts.csv"], "is neither a .safetensors file nor an expression"),
    (["--edit", "{tmp}/d.safetensors"], "holds directions, not an edit"),
    (["--edit", "ablate({tmp}/d.safetensors, layer=9)"], "layer=9 is not a layer of this model, 0 to 4"),
    (["--edit", "ablate(random, strength=2)"], "'strength' is not an option of ablate"),
    (["--edit", "add(random, layer=1)", "--baked"], "has no weight form"),
    (
        ["--edit", "orthogonalise(random, norm_preserving=true)"],
        "exists only as weights: use --baked",
    ),
    (["--prompts", "nowhere"], "unknown prompt set 'nowhere'"),
    (["--prompts", "{tmp}/fit.csv"], "has no prompts in split 'report': --split can be fit"),
    (["--out", "{tmp}/prompts.csv"], "is a file: name a folder for the run"),
    (["--seed", "-1"], "seed: "),
]


@pytest.mark.parametrize(("options", "said"), MISTAKES, ids=[" ".join(o) for o, _ in MISTAKES])
def test_a_mistake_is_one_line_and_leaves_no_folder(
    work: Callable[..., Any], tmp_path: Path, options: list[str], said: str
) -> None:
    write_csv(PromptSet(tuple(small_prompts().fit), "fit"), tmp_path / "fit.csv")
    result = call(*work(*(o.format(tmp=tmp_path) for o in options)))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_an_unknown_model_and_another_runs_folder(work: Callable[..., Any], tmp_path: Path) -> None:
    result = call(*work(model="none"))
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("error: unknown model 'none'")
    assert not (tmp_path / "run").exists()
    succeed(*work("--limit", 1, "--edit", "ablate(random)"))
    for options, said in (
        (["--limit", 2, "--edit", "ablate(random)"], "limit: 1 -> 2"),
        (["--limit", 1], "edit: 'ablate(random)' -> None"),
        (["--limit", 1, "--edit", "ablate(random)", "--baked"], "baked: False -> True"),
    ):
        result = call(*work(*options))
        assert result.exit_code == 2
        assert "has another configuration (" in result.stderr
        assert said in result.stderr.splitlines()[-1]


def test_an_edit_file_that_changed_between_sessions_is_noticed(
    work: Callable[..., Any], tmp_path: Path
) -> None:
    saved = tmp_path / "e.safetensors"
    succeed(*work("--limit", 1, "--edit", "ablate(random, seed=1)", "--save-edit", saved, out="a"))
    succeed(*work("--limit", 1, "--edit", saved, out="b"))
    succeed(*work("--limit", 1, "--edit", "ablate(random, seed=2)", "--save-edit", saved, out="c"))
    result = call(*work("--limit", 1, "--edit", saved, out="b"))
    assert result.exit_code == 2
    assert "edit_sha256" in result.stderr


def test_an_edit_of_other_weights_is_refused(
    work: Callable[..., Any], tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    other = tiny_folder("llama", 1)
    saved = tmp_path / "e.safetensors"
    succeed(*work("--limit", 1, "--edit", "ablate(random)", "--save-edit", saved, out="a"))
    result = call(*work("--limit", 1, "--edit", saved, model=other))
    assert result.exit_code == 2
    assert f"write saved({saved}, any_weights=true)" in result.stderr
    facts = succeed(*work("--limit", 1, "--edit", f"saved({saved}, any_weights=true)", "--json", model=other))
    assert facts["edit"]["description"].startswith("Ablate(")


# -- what is fed ----------------------------------------------------------------------------------------


def test_options_report_what_is_fed(work: Callable[..., Any], tmp_path: Path) -> None:
    prompts = write_csv(
        PromptSet(
            (replace(small_prompts().report[0], text="river " * 300 + "<eos>"), *small_prompts().report[1:])
        ),
        tmp_path / "long.csv",
    )
    given = ["--prompts", prompts, "--limit", 6, "--date", "2001-02-03"]
    refused = call(*work(*given, out="no"))
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "--truncate-prompts" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 2  # what is loaded, and what is wrong
    succeed(*work(*given, "--truncate-prompts", "--escape-control-tokens", "--template", "plain", out="yes"))
    manifest = json.loads((tmp_path / "yes" / "manifest.json").read_text())
    assert manifest["date"] == "2001-02-03"
    assert next(iter(manifest["models"].values()))["template"] == "plain"
    (record,) = manifest["fed"].values()
    first = small_prompts().report[0].id
    assert record["truncated_prompts"] == {"n": 1, "ids": [first]}
    assert record["control_tokens"] == {"n_prompts": 1, "first": first, "escaped": True}
    assert "no day of the calendar" in call(*work("--date", "2 2001", out="never")).stderr


def test_a_flag_that_is_not_given_leaves_a_study_as_in_its_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("truncate_prompts: true\ndate: 2001-02-03\n")
    facts = succeed("study", tmp_path / "mine.yaml", "--print-config", "--json")
    assert (facts["truncate_prompts"], facts["escape_control_tokens"]) == (True, False)
    assert facts["date"] == "2001-02-03"
    assert succeed("study", "--truncate-prompts", "--print-config", "--json")["truncate_prompts"] is True


# -- chat settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--chat-arg", "style"], "--chat-arg 'style': key=value is expected"),
        (["--chat-arg", "=1"], "key=value is expected"),
        (["--chat-arg", "a=1", "--chat-arg", "a=2"], "--chat-arg a is given twice"),
        (["--chat-arg", "styl=1"], "chat argument 'styl': the chat template of"),
        (["--answer-prefix", "Sure", "--thinking", "model"], "an answer prefix leaves no thought"),
    ],
)
def test_wrong_chat_settings_are_one_line(work: Callable[..., Any], options: list[str], said: str) -> None:
    result = call(*work(*options))
    assert result.exit_code == 2
    assert said in result.stderr
    assert said in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.output


def test_chat_settings_arrive_from_the_command_line(work: Callable[..., Any], tmp_path: Path) -> None:
    options = ["--system-prompt", "help me", "--answer-prefix", "the key"]
    succeed(*work("--limit", 1, *options))
    manifest = read_run(tmp_path / "run").manifest
    asked = {
        "system_prompt": "help me",
        "template_arguments": {},
        "answer_prefix": "the key",
        "thinking": "off",
        "max_thought_tokens": 1024,
    }
    assert manifest["config"]["chat"] == asked
    (fed,) = manifest["fed"].values()
    assert all(
        text.startswith("Instructions: help me") and text.endswith("the key")
        for text in fed["rendered"].values()
    )
    assert all(text.startswith("the key") for text in answers(tmp_path / "run").values())
    other = call(*work("--limit", 1, *options[:2]))
    assert other.exit_code == 2
    assert "another configuration" in other.stderr
