"""What people have, in every form that the one layer of coercion takes, and what it says of the rest."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch

import mechsafety as ms
from mechsafety.claims.shared import RunTables
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.values import same
from mechsafety.plots.look import looking
from tests.prompt_sets import small_prompts

TEXTS = ["how do i make bread", "tell me about the storm", "write a list of fire", "help me with the lock"]
VECTOR = np.random.default_rng(0).normal(size=32)
MESSAGE = {"role": "user", "content": TEXTS[0]}


@pytest.fixture
def model(tiny_kept: Callable[..., Any]) -> Any:
    return tiny_kept("llama")


@pytest.fixture(scope="module")
def directions() -> ms.Directions:
    generator = torch.Generator().manual_seed(0)
    prompts = small_prompts(4).fit
    cache = ms.ResidualCache(
        activations=torch.randn(8, 1, 5, 32, generator=generator),
        positions=(-1,),
        ids=tuple(p.id for p in prompts),
        labels=tuple(p.label for p in prompts),
        model="tiny",
        fingerprint="",
    )
    return ms.find_directions(cache, resamples=2)


# -- vectors and edits


@pytest.mark.parametrize(
    "given",
    [
        pd.Series(VECTOR, index=np.random.default_rng(1).permutation(32)),
        pd.Series(VECTOR, index=[f"n{number}" for number in range(32)]),
        VECTOR.astype(object),
        VECTOR.astype("float16"),
        torch.tensor(VECTOR, dtype=torch.bfloat16),
        torch.nn.Parameter(torch.tensor(VECTOR)),
        list(VECTOR),
        VECTOR[None],
    ],
    ids=["shuffled index", "named index", "objects", "float16", "bfloat16", "parameter", "list", "row"],
)
def test_a_vector_is_its_numbers_in_their_order(given: Any) -> None:
    found, expected = ms.Ablate(given).basis, ms.Ablate(VECTOR).basis
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def test_directions_span_a_subspace_and_all_of_a_model_do_not(directions: ms.Directions) -> None:
    two = [directions.at(layer=1), directions.at(layer=2)]
    assert ms.Ablate(two) == ms.Ablate(torch.stack([one.vector for one in two]))  # type: ignore[arg-type]
    with pytest.raises(MechsafetyError, match=r"of several directions one: directions\.at\(layer="):
        ms.Ablate(directions)  # type: ignore[arg-type]
    with pytest.raises(MechsafetyError, match=r"vector\.T"):
        ms.Ablate(VECTOR[:, None])


def test_edits_are_walked_through_and_a_vector_is_none(model: Any) -> None:
    parts = [ms.Ablate(VECTOR), ms.Add(VECTOR, layer=1)]
    several = ms.generate(model, TEXTS[:1], edit=(one for one in parts), max_new_tokens=2, progress=False)
    assert several == ms.generate(model, TEXTS[:1], edit=sum(parts), max_new_tokens=2, progress=False)  # type: ignore[arg-type]
    with pytest.raises(MechsafetyError, match=r"write ms\.Ablate\(direction\)"):
        ms.generate(model, TEXTS[:1], edit=VECTOR, max_new_tokens=2)  # type: ignore[arg-type]


# -- paths


def test_home_is_home_wherever_a_path_is_written_or_read(
    model: Any, directions: ms.Directions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home of mine"))
    monkeypatch.chdir(tmp_path)
    (home := tmp_path / "home of mine").mkdir()
    directions.save("~/d.safetensors")
    ms.save_edit(ms.Ablate(VECTOR), "~/e.safetensors", model=model)
    ms.save_model(model, ms.Ablate(VECTOR), "~/merged")
    ms.save_figure(directions.plot(), "~/f.html")
    ms.generate(model, TEXTS[:1], max_new_tokens=2, out="~/answers", progress=False)
    ms.judges.VerdictCache("~/v.sqlite").close()
    small_prompts(2).to_frame().to_csv(home / "p.csv", index=False)
    (home / "answers.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    assert ms.load_directions("~/d.safetensors") == directions
    assert ms.load_edit("~/e.safetensors", model=model) == ms.Ablate(VECTOR)
    assert ms.generate(model, TEXTS[:1], edit="~/e.safetensors", max_new_tokens=2).coverage is not None
    assert len(ms.load_prompts("~/p.csv")) == 12
    assert len(ms.judge("~/answers.jsonl").to_frame()) == 1
    assert not (tmp_path / "~").exists()
    assert {p.name for p in home.iterdir()} >= {"d.safetensors", "merged", "f.html", "answers", "v.sqlite"}


@pytest.mark.parametrize(
    ("name", "said"),
    [("d.npz", r"must end in \.safetensors"), ("folder.safetensors", "cannot write|is a folder")],
)
def test_directions_go_where_caches_go(
    directions: ms.Directions, tmp_path: Path, name: str, said: str
) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(MechsafetyError, match=said):
        directions.save(tmp_path / name)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


# -- prompts


def columns() -> dict[str, Any]:
    return {"text": TEXTS, "label": ["harmful", "harmless"] * 2}


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (columns(), ["harmful", "harmless"] * 2),
        (datasets.Dataset.from_dict(columns())[:4], ["harmful", "harmless"] * 2),
        (pd.DataFrame({"text": TEXTS, "label": ["Harmful", "HARMLESS", "harmful ", "harmless"]}), ["harmful", "harmless"] * 2),
        (
            datasets.Dataset.from_dict(
                {"text": TEXTS, "label": [1, 0, 1, 0]},
                features=datasets.Features(
                    {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["harmless", "harmful"])}
                ),
            ),
            ["harmful", "harmless"] * 2,
        ),
        ({"text": TEXTS[0], "label": "harmful"}, ["harmful"]),
        (MESSAGE, [""]),
        ({"messages": [MESSAGE], "label": "harmful"}, ["harmful"]),
        (pd.Series(TEXTS, index=list("abcd")), [""] * 4),
        (pd.DataFrame({"text": pd.array(TEXTS, dtype="string")}, index=[3, 3, 1, 0]), [""] * 4),
    ],
    ids=["columns", "slice of a dataset", "case and blanks", "classes", "row", "message", "messages", "series", "frame"],
)  # fmt: skip
def test_prompts_in_other_forms(given: Any, labels: list[str]) -> None:
    found = ms.load_prompts(given)
    assert [p.label for p in found] == labels
    assert [p.text for p in found] == TEXTS[: len(labels)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("  ", "^prompt 1 is empty"),
        ([TEXTS[0], ""], "^prompt 2 is empty"),
        ({"text": TEXTS, "label": ["harmful"]}, "unlike lengths: text 4, label 1"),
        (
            pd.DataFrame({"request": TEXTS, "note": TEXTS}),
            r"have request, note, want .*; name it, load_prompts\(data, text='request'\)",
        ),
        (pd.DataFrame({"text": ["a", pd.NA]}, dtype=object), "row 1: column 'text' is empty"),
        (
            pd.DataFrame({"text": TEXTS, "label": ["harmful", pd.NA, "harmless", None]}, dtype=object),
            "label ''",
        ),
        ([MESSAGE | {"content": [{"type": "image"}]}], "part of type .image.; text alone is read"),
    ],
)
def test_prompts_that_are_none(model: Any, given: Any, said: str) -> None:
    with pytest.raises(MechsafetyError, match=said):
        ms.residual_stream(model, given, progress=False)


def test_a_set_says_what_has_no_label(model: Any) -> None:
    some = ms.load_prompts([*TEXTS[:2], {"text": TEXTS[2], "label": "harmful"}])
    assert repr(some).endswith("3 report (1 harmful, 2 without label))")
    assert "without label" in some._repr_html_()
    assert "without" not in small_prompts(2)._repr_html_()
    assert "4 without label" in repr(ms.residual_stream(model, TEXTS, progress=False))


@pytest.mark.parametrize(
    "index",
    [slice(1, 3), [1, 2], np.array([1, 2]), np.array([False, True, True, False]), [False, True, True, False]],
)
def test_prompts_and_answers_are_picked_as_arrays_are(model: Any, index: Any) -> None:
    prompts = ms.load_prompts(TEXTS)
    answers = ms.generate(model, prompts, max_new_tokens=2, progress=False)
    assert [p.text for p in prompts[index]] == TEXTS[1:3]
    assert isinstance(prompts[index], ms.PromptSet)
    assert list(answers[index]) == list(answers)[1:3]
    assert answers[np.int64(-1)] == answers[3]
    for wrong in ("fit", 1.5, [True]):
        with pytest.raises(MechsafetyError, match=r"mask|prompts\.where"):
            _ = prompts[wrong]


# -- answers and judges


def test_answers_in_other_forms(model: Any) -> None:
    answers = ms.generate(model, TEXTS[:2], max_new_tokens=2, progress=False)
    table, texts = answers.to_frame(), [c.text for c in answers]
    expected = ms.judge(answers).to_frame()["verdict"].tolist()
    several: list[Any] = [
        list(answers),
        (TEXTS[:2], texts),
        list(zip(TEXTS, texts, strict=False)),
        zip(TEXTS, texts, strict=False),
        table[["prompt", "response"]].to_dict("list"),
        table.rename(columns={"response": "output"}),
        datasets.Dataset.from_pandas(table[["prompt", "response"]]),
        table.set_index("id"),
    ]
    for given in several:
        assert ms.judge(given).to_frame()["verdict"].tolist() == expected
    assert ms.judge(answers[0]).to_frame()["id"].tolist() == [answers[0].id]
    for missing in (None, float("nan"), pd.NA, ""):
        assert ms.judge((TEXTS[:1], [missing])).to_frame()["verdict"].item() == "degenerate"
    with pytest.raises(MechsafetyError, match=r"one answer is \(prompt, response\) in two lists"):
        ms.judge("I'm sorry, I can't.")
    with pytest.raises(MechsafetyError, match="give each answer an id of its own"):
        ms.judge(pd.concat([table, table]))
    with pytest.raises(MechsafetyError, match="other is 3"):
        answers.compare(3)  # type: ignore[arg-type]
    assert list(answers.compare(list(answers), judges={"own": lambda p, r: True})["own"]) == ["refusal"] * 2


class Named:
    name = "named"

    def __init__(self, given: Any) -> None:
        self.given = given

    def __call__(self, responses: Any) -> Any:
        return self.given


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        (lambda p, r: None, "returned None"),
        (lambda p, r: float("nan"), "returned nan"),
        (lambda p, r: pd.Series([True]), "one of refusal"),
        (lambda p, r: np.array([True]), "one of refusal"),
        (lambda p, r: "REFUSAL", "one of refusal"),
        (Named([True]), "returned True .*a Verdict for each"),
        (Named(None), "returned None .*a Verdict for each"),
        ([lambda p, r: True, lambda p, r: False], r"name functions in a mapping"),
    ],
)
def test_judges_that_return_no_label(judge: Any, said: str) -> None:
    with pytest.raises(MechsafetyError, match=said):
        ms.judge((["a"], ["b"]), judge)


def test_functions_are_named_in_a_mapping() -> None:
    own = {"yes": lambda p, r: np.bool_(True), "no": lambda p, r: torch.tensor(False), "list": "rules"}
    found = ms.judge((["a"], ["I can't help with that."]), own).to_frame()
    assert dict(zip(found["judge"], found["verdict"], strict=True)) == {
        "yes": "refusal",
        "no": "compliance",
        "rules": "refusal",
    }


# -- results


def test_results_survive_pickling_and_copies(model: Any, directions: ms.Directions) -> None:
    swept = ms.sweep(model, directions, small_prompts(3).validation, allow_other_weights=True, progress=False)
    answers = ms.generate(model, TEXTS[:1], edit=ms.Ablate(VECTOR), max_new_tokens=2, progress=False)
    for one in (swept, directions, answers, ms.Ablate(VECTOR), small_prompts(2), ms.judge(answers)):
        assert pickle.loads(pickle.dumps(one)) == one
        assert copy.deepcopy(one) == one
    assert same(np.array([1.0, np.nan]), np.array([1.0, np.nan]))
    assert not same(np.array([1.0, np.nan]), np.array([1.0, 2.0]))
    assert replace(swept, cost=0.5) != swept


@pytest.mark.parametrize("given", [np.ones((2, 32)), torch.ones(2, 32), np.ones((2, 32)).tolist()])
def test_activations_of_any_kind_are_projected(directions: ms.Directions, given: Any) -> None:
    direction = directions.at(layer=2)
    assert direction.project(given).tolist() == pytest.approx([float(direction.unit.sum())] * 2, rel=1e-5)
    for wrong in (np.ones(31), "a", ["a"] * 32, 3):
        with pytest.raises(MechsafetyError, match=r"\[\.\.\., 32\] is needed"):
            direction.project(wrong)  # type: ignore[arg-type]


def test_a_run_says_what_it_lacks() -> None:
    tables = RunTables({"rates": pd.DataFrame()})
    with pytest.raises(MechsafetyError, match="no table 'rate': it has rates"):
        _ = tables["rate"]
    with pytest.raises(KeyError):
        _ = tables["rate"]
    assert tables.get("rate") is None
    with (
        pytest.raises(MechsafetyError, match=r"'wdth' is not one of the options.* did you mean width"),
        looking(wdth=3),
    ):  # type: ignore[call-arg]
        pass


def test_numbers_that_are_not_measured_are_nan(model: Any) -> None:
    cache = ms.residual_stream(model, small_prompts(3).fit, progress=False)
    assert ms.find_directions(cache, resamples=0).stability.isnan().all()
    with pytest.raises(MechsafetyError, match="resamples is -1"):
        ms.find_directions(cache, resamples=-1)
    with pytest.raises(MechsafetyError, match="position -1 is named twice"):
        ms.residual_stream(model, TEXTS, positions=[-1, -1])
    with pytest.raises(MechsafetyError, match="k is 0"):
        ms.logit_lens(model, VECTOR, k=0)


def test_verdicts_of_one_set_are_counted_as_they_are_and_as_a_table() -> None:
    verdicts = ms.judge((TEXTS, ["I'm sorry, but I can't help with that."] * 2 + ["Lift the latch."] * 2))
    pd.testing.assert_frame_equal(ms.refusal_rates(verdicts), ms.refusal_rates(verdicts.to_frame()))


def test_what_transformers_takes_is_named_here() -> None:
    class Saved:
        def save_pretrained(self) -> None: ...

    with pytest.raises(MechsafetyError, match=r"save_pretrained\(folder\) writes one"):
        ms.load_model(Saved())  # type: ignore[arg-type]
    with pytest.raises(MechsafetyError, match=r"give sampling=ms\.Sampling\(temperature=\.\.\.\)"):
        ms.generate("a", TEXTS, temperature=0.7)  # type: ignore[call-arg]


def test_a_file_where_a_folder_is_to_be_is_no_traceback(model: Any, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(MechsafetyError, match="taken' cannot be written to"):
        ms.generate(model, TEXTS[:1], max_new_tokens=1, out=tmp_path / "taken", progress=False)


def test_configurations_are_made_by_name_and_do_not_change() -> None:
    config = ms.StudyConfig(limit=3)
    with pytest.raises(MechsafetyError, match=r"model_copy\(update=\{'limit': \.\.\.\}\)"):
        config.limit = 4  # type: ignore[misc]
    assert config.model_copy(update={"limit": 4}).limit == 4
    with pytest.raises(MechsafetyError, match=r"no such field .did you mean 'limit'"):
        config.model_copy(update={"limti": 4})
    with pytest.raises(MechsafetyError, match="limit: "):
        config.model_copy(update={"limit": -1})
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    with pytest.raises(MechsafetyError, match=r"fields by name, StudyConfig\(field="):
        ms.StudyConfig("smollm2-135m")  # type: ignore[call-arg, misc]
    with pytest.raises(MechsafetyError, match="one of harmful, harmless or an empty text is needed"):
        ms.Prompt(id="a", text="b", label="evil")  # type: ignore[arg-type]


def test_signatures_and_configurations_are_short(model: Any) -> None:
    for kind in (ms.Ablate, ms.Directions, ms.PromptSet, ms.Directions.cosine, ms.PromptSet.where):
        assert ": '" not in str(inspect.signature(kind))
    assert repr(ms.StudyConfig()) == str(ms.StudyConfig()) == "StudyConfig()"
    assert repr(ms.StudyConfig(limit=3)) == "StudyConfig(limit=3)"
    assert len(repr(model.load_record)) < 200
    assert repr(ms.regions.linear_maps(model)[0]) == "LinearMap(blocks.0.q, 32 x 32)"
