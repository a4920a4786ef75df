"""What a researcher tries first in a notebook: names that are nearly right, tables and arrays of other shapes."""

from __future__ import annotations

import copy
import pickle
import re
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.checkpoint import checkpoint

import mechsafety as ms
from mechsafety.experiments import known_names
from mechsafety.judges.judging import _placed
from mechsafety.models.adapters import packaged_adapters
from mechsafety.models.gguf import PACKAGED
from mechsafety.models.loading import body_of, plain_tree
from mechsafety.models.templates import NAMES
from tests.prompt_sets import small_prompts

TEXTS = ["how do i make bread", "tell me about the storm"]
VECTOR = np.random.default_rng(0).normal(size=32)


@pytest.fixture
def model(tiny_kept: Callable[..., Any]) -> Any:
    return tiny_kept("llama")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"judges": "rulez"}, r"judges: no judge is called 'rulez'.*did you mean 'rules'"),
        ({"judges": "Rules"}, "did you mean 'rules'"),
        ({"judges": "rules,degeneracy"}, "several judges are a list of names"),
        ({"judges": ["rules", "phrases:arditti"]}, "needs a published list, got 'arditti'"),
        ({"judges": "majority:rules,rulez"}, "did you mean 'rules'"),
        ({"judges": "logit"}, "needs a model"),
        ({"judges": len}, r"ms.judge\(answers, function\)"),
        ({"systems": "smolm2-135m"}, "did you mean 'smollm2-135m'"),
        ({"systems": "smollm2-135m+refusal"}, "unknown adapter 'refusal'.*did you mean 'refusals'"),
        ({"prompts": "defualt"}, "did you mean 'default'"),
        ({"anchors": small_prompts(2)}, r"data.to_frame\(\).to_csv\('own.csv', index=False\) writes one"),
        ({"template": "plian"}, "did you mean 'plain'"),
        ({"device": "gpu"}, "unknown device 'gpu' .did you mean 'cuda'"),
        ({"device": "CUDA:1"}, "unknown device 'CUDA:1' .did you mean 'cuda'"),
        ({"device": "cuda:x"}, "device 'cuda:x': behind the colon stands a number, as in cuda:0"),
        ({"device": "cuda:01"}, "device 'cuda:01': behind the colon stands a number"),
        ({"recipe": "ardity"}, "did you mean 'arditi'"),
        ({"selection": "autoo"}, "^selection: 'autoo' is not one of"),
        ({"judgs": "rules"}, "did you mean 'judges'"),
    ],
)
def test_names_that_are_known_to_be_wrong_are_refused_at_once(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ms.MechsafetyError, match=said):
        ms.StudyConfig(**given)


def test_names_of_another_machine_are_taken() -> None:
    ms.StudyConfig(
        systems=("my-model", "a/b"), prompts="requests", judges=("key:labels.csv", "logit:mine", "rules")
    )
    with pytest.raises(ms.MechsafetyError, match=r"SweepConfig needs model: give SweepConfig\(model="):
        ms.SweepConfig()  # type: ignore[call-arg]
    config = ms.SweepConfig(model="mine", layers=3, dtype=torch.float16, device=torch.device("cpu"))  # type: ignore[arg-type]
    assert (config.layers, config.dtype, config.device) == ((3,), "float16", "cpu")


def test_a_device_that_torch_knows_is_no_unknown_one() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.device("nothing")
    known = str(error.value).partition("one of ")[2].partition(" device type")[0].split(", ")
    assert {"cpu", "cuda", "maia", "privateuseone"} <= set(known)
    for name in (*known, "auto", "npu", "mine:0", "cuda:10"):
        assert ms.StudyConfig(device=name).device == name


def test_what_is_known_without_torch_is_what_torch_is_loaded_for() -> None:
    assert known_names._PACKAGED_MODEL == PACKAGED
    assert set(known_names._TEMPLATES) == set(NAMES)
    assert known_names._adapters() == packaged_adapters()


def test_a_configuration_shows_its_fields() -> None:
    config = ms.StudyConfig(limit=7)
    assert "<b>limit</b></td><td>7" in config._repr_html_()
    assert {"limit", "judges", "model_copy"} <= set(dir(config))
    assert not {"construct", "parse_obj", "model_fields"} & set(dir(config))


@pytest.mark.parametrize(
    "given",
    [
        pd.DataFrame({"Goal": TEXTS, "id": [7, 8]}),
        pd.DataFrame({"request": TEXTS}),
        np.array(TEXTS)[:, None],
        [{"Behavior": text, "Label": "harmful"} for text in TEXTS],
        [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in TEXTS],
        [
            [{"role": "user", "content": [text[:4], {"type": "input_text", "text": text[4:]}]}]
            for text in TEXTS
        ],
        [[{"role": "user", "content": text, "name": None}] for text in TEXTS],
    ],
)
def test_prompts_in_other_shapes(given: Any) -> None:
    assert [prompt.text for prompt in ms.load_prompts(given)] == TEXTS


@pytest.mark.parametrize(
    "others",
    [
        {"Text": ["x", "y"]},
        {"Text": ["x", "y"], "TEXT": ["z", "w"]},
        {"Label": ["x", "y"], "Messages": ["", ""]},
    ],
)
def test_a_column_by_its_own_name_goes_before_those_in_capitals(others: dict[str, list[str]]) -> None:
    prompts = ms.load_prompts(pd.DataFrame({**others, "prompt": TEXTS}))
    assert [(prompt.text, prompt.label) for prompt in prompts] == [(text, "") for text in TEXTS]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            [[{"role": "user", "content": [{"type": "image", "url": "x"}]}]],
            "part of type 'image'; text alone is read",
        ),
        ([[{"role": "user", "content": [{"type": "text"}]}]], "a text part without a text"),
        ([[{"role": "user", "content": 3}]], "content is a int; a text, or a list of text parts"),
        ([TEXTS], "prompt 1 is a list of 2 texts: give all texts in one list"),
        ([[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]], "answer_prefix"),
        ([{"text": "a", "split": "train"}], r"prompts.split\(fit=.6"),
        ([{"Text": "a", "TEXT": "b"}], "item 1: columns 'Text' and 'TEXT' differ in case alone"),
        (pd.DataFrame({"Goal": ["a"], "Label": ["x"], "LABEL": ["y"]}), "'Label' and 'LABEL' differ in case"),
        *(
            ([{name: "harmful"}, {name: "harmless"}], f"no text column; have {name}")
            for name in ("label", "split", "category", "source", "id", "licence", "Category")
        ),
    ],
)
def test_prompts_that_need_a_remedy(given: Any, said: str) -> None:
    with pytest.raises(ms.MechsafetyError, match=said):
        ms.load_prompts(given)


def test_a_prompt_needs_no_id() -> None:
    one, same, other = ms.Prompt(text="bread"), ms.Prompt(text="bread"), ms.Prompt(text="storm")
    assert one == same
    assert one.id.startswith("p-")
    assert one.id != other.id
    assert ms.load_prompts(["bread"])[0].id == one.id


def test_answers_with_capital_columns() -> None:
    table = pd.DataFrame({"Prompt": TEXTS, "Response": ["I'm sorry, but I can't help with that.", "Sure."]})
    assert ms.judge(table).to_frame()["verdict"][0] == "refusal"
    for name in ("id", "Id", "ID"):
        frame = ms.judge(table.assign(**{name: ["b1", "b2"], "Label": ["harmful", "harmless"]})).to_frame()
        assert frame["id"].tolist() == ["b1", "b2"]
        assert frame["label"].tolist() == ["harmful", "harmless"]
    exact = ms.judge(table.assign(prompt=TEXTS[::-1], Id=["x", "y"], id=["b1", "b2"]))
    assert exact.to_frame()["id"].tolist() == ["b1", "b2"]
    with pytest.raises(ms.MechsafetyError, match="columns 'Id' and 'ID' differ in case alone"):
        ms.judge(table.assign(Id=["x", "y"], ID=["b1", "b2"]))


@pytest.mark.parametrize("given", [VECTOR[::-1], VECTOR.astype(">f8"), np.broadcast_to(VECTOR, (1, 32))])
def test_vectors_however_they_lie_in_memory(given: Any) -> None:
    assert ms.Ablate(given) == ms.Ablate(np.array(given, dtype=float))


@pytest.fixture
def directions(model: Any) -> ms.Directions:
    return ms.find_directions(ms.residual_stream(model, small_prompts().fit), resamples=2)


def test_results_as_arrays_copies_and_pickles(model: Any, directions: ms.Directions) -> None:
    one, cache = directions.at(2), ms.residual_stream(model, TEXTS)
    assert one == directions.at(layer=2)
    np.testing.assert_array_equal(np.asarray(one), one.vector.numpy())
    assert np.asarray(directions, dtype=float).shape == (1, 5, 32)
    assert np.asarray(cache).shape == tuple(cache.activations.shape)
    for result, held in ((one, one.vector), (directions, directions.vectors), (cache, cache.activations)):
        before, array = held.clone(), np.asarray(result)
        array[...] = 99
        assert torch.equal(held, before), "results do not change"
        assert np.shares_memory(np.array(result, copy=False), held.numpy())
    for kept in (directions, one, cache, ms.Ablate(one), ms.StudyConfig(limit=3)):
        assert pickle.loads(pickle.dumps(kept)) == kept
        assert copy.deepcopy(kept) == kept


def test_what_holds_directions_names_the_one_to_take(model: Any, directions: ms.Directions) -> None:
    swept = ms.sweep(model, directions, small_prompts().validation, layers=(1, 2))
    for given, said in (
        (directions, r"directions.at\(layer=...\)"),
        (swept, r"sweep.best\(\)"),
        (swept.nearest(), r"position=selection.position\)"),
    ):
        with pytest.raises(ms.MechsafetyError, match=said):
            ms.Ablate(given)  # type: ignore[arg-type]


def test_a_scale_by_its_name(model: Any, directions: ms.Directions) -> None:
    figure = ms.residual_stream(model, TEXTS).project(directions).plot(colours="Viridis")
    assert figure.data[0].colorscale[0][1] == "#440154"


def test_one_is_no_plural(model: Any) -> None:
    answers = ms.generate(model, TEXTS[0], max_new_tokens=1, progress=False)
    assert "Completions(1 answer, 1 token" in repr(answers)
    assert repr(ms.judge(answers)).startswith("Verdicts on 1 response\n")


def in_a_thread(function: Callable[[], Any]) -> Any:
    """What ``function`` returns in another thread, or the error that it raises there."""
    found: list[Any] = []

    def call() -> None:
        try:
            found.append(function())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return found[0]


def test_another_thread_is_not_changed_by_an_edit(model: Any) -> None:
    def answer(edit: Any = None) -> Any:
        return ms.generate(model, TEXTS, edit=edit, max_new_tokens=3, progress=False)

    edit, plain = ms.Ablate(VECTOR), answer()
    assert in_a_thread(answer) == plain
    tried = {
        "a pass": answer,
        "an edit": lambda: answer(edit),
        "activations": lambda: ms.residual_stream(model, TEXTS, progress=False),
        "the model itself": lambda: model(torch.tensor([[5, 6, 7]])),
    }
    for block in (ms.edited(model, edit), ms.baked(model, ms.Orthogonalise(VECTOR))):
        with block:
            for what, function in tried.items():
                error = in_a_thread(function)
                assert isinstance(error, ms.MechsafetyError), what
                assert "another thread" in str(error)
            assert answer() != plain, "in the thread of the edit it acts"
    assert in_a_thread(answer) == answer() == plain
    assert not any("thread" in name for name in body_of(model).__dict__)


def paused(module: Any, run: Callable[[], Any], meanwhile: Callable[[], Any]) -> Any:
    """What ``run`` returns or raises in a thread that waits before ``module`` until ``meanwhile`` has run here."""
    begun, done, here = threading.Event(), threading.Event(), threading.get_ident()

    def wait(_module: Any, _args: Any) -> None:
        if threading.get_ident() != here:  # an edit of weights tries the model
            begun.set()
            assert done.wait(60)

    handle, found = module.register_forward_pre_hook(wait), list[Any]()
    thread = threading.Thread(target=lambda: found.append(in_a_thread(run)))
    thread.start()
    try:
        assert begun.wait(60)
        meanwhile()
    finally:
        done.set()
        thread.join()
        handle.remove()
    return found[0]


@pytest.mark.parametrize("tree", [body_of, plain_tree], ids=["bridge", "twin"])
@pytest.mark.parametrize("place", ["model.layers.0", "model.layers.3.mlp"])
def test_a_pass_that_is_under_way_is_not_changed_by_an_edit_of_weights(
    model: Any, tree: Callable[[Any], Any], place: str
) -> None:
    body, ids = tree(model), torch.tensor([[5, 6, 7]])

    def run() -> Any:
        with torch.inference_mode():
            return body(input_ids=ids).logits

    plain, stack = run(), ExitStack()
    with stack:
        edit = ms.baked(model, ms.Orthogonalise(VECTOR))
        found = paused(body.get_submodule(place), run, lambda: stack.enter_context(edit))
        assert isinstance(found, ms.MechsafetyError)
        assert "another thread" in str(found)
    assert torch.equal(in_a_thread(run), plain)


def test_a_copy_of_an_edited_model_is_free(model: Any) -> None:
    ids = torch.tensor([[5, 6, 7]])
    with ms.baked(model, ms.Orthogonalise(VECTOR)):
        own = copy.deepcopy(body_of(model))
        expected = own(input_ids=ids).logits
        assert torch.equal(in_a_thread(lambda: own(input_ids=ids).logits), expected)
        twin = copy.deepcopy(model)
    assert torch.equal(in_a_thread(lambda: own(input_ids=ids).logits), expected)
    assert in_a_thread(lambda: ms.logits(twin, TEXTS, edit=ms.Ablate(VECTOR))).shape[0] == len(TEXTS)


def test_what_a_backward_pass_runs_again_is_no_other_threads(model: Any) -> None:
    body, ids = plain_tree(model), torch.tensor([[5, 6, 7]])
    with ms.baked(model, ms.Orthogonalise(VECTOR)):
        start = body.get_input_embeddings()(ids).detach().requires_grad_()
        loss = checkpoint(body.model.layers[0].mlp, start, use_reentrant=False).sum()
        assert in_a_thread(loss.backward) is None, "on a GPU it runs in a thread of torch's own"
        assert start.grad is not None


def test_threads_side_by_side_are_right_or_told(model: Any) -> None:
    edits = [None, ms.Ablate(VECTOR), None, ms.Ablate(VECTOR[::-1])]

    def answer(edit: Any) -> Any:
        return ms.generate(model, TEXTS, edit=edit, max_new_tokens=6, progress=False)

    expected, found = [answer(edit) for edit in edits], dict[int, Any]()

    def work(place: int) -> None:
        try:
            found[place] = answer(edits[place])
        except ms.MechsafetyError as error:
            found[place] = error

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(edits))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(edits), "an error of another kind was raised"
    for place, one in found.items():
        assert isinstance(one, ms.MechsafetyError) or one == expected[place]
    assert answer(None) == expected[0]


def test_directions_as_an_edit(directions: ms.Directions, tmp_path: Path) -> None:
    directions.save(tmp_path / "d.safetensors")
    with pytest.raises(ms.MechsafetyError, match=r"ms.Ablate\(ms.load_directions\(path\).at\(layer\)\)"):
        ms.load_edit(tmp_path / "d.safetensors")


@pytest.mark.parametrize(
    ("name", "said"),
    [("genrate", "did you mean 'generate'"), ("outcome_bars", "it is ms.plots.outcome_bars")],
)
def test_a_public_name_that_is_nearly_right(name: str, said: str) -> None:
    with pytest.raises(AttributeError, match=said):
        getattr(ms, name)


REFUSAL, HELP = "I'm sorry, but I can't help with that.", "Sure: lift the latch, then push the gate open."


def test_rates_of_several_systems() -> None:
    before, after = ms.judge((TEXTS, [REFUSAL] * 2)), ms.judge((TEXTS, [REFUSAL, HELP]))
    rates = ms.refusal_rates({"a": before, "b": {"original": before, "edited": after}})
    assert rates[["system", "arm", "refusal"]].to_numpy().tolist() == [
        ["a", "original", 2],
        ["b", "original", 2],
        ["b", "edited", 1],
    ]
    with pytest.raises(ms.MechsafetyError, match="'original' is an arm and 'b' none"):
        ms.refusal_rates({"original": before, "b": after})
    with pytest.raises(ms.MechsafetyError, match=r"Verdicts are needed, which ms.judge makes"):
        _placed({"a": {"original": 3}}, "model")
    for given, said in (
        ({"a": {}}, "system 'a' has no verdicts"),
        ({"a": {}, "b": before}, "system 'a' has no verdicts"),
        (
            {"a": {"edit": before}},
            r"system 'a': 'edit' is no arm .did you mean 'edited'\?.; arms are original",
        ),
        ({"a": {"b": before}}, "system 'a': 'b' is no arm"),
    ):
        with pytest.raises(ms.MechsafetyError, match=said):
            ms.refusal_rates(given)


def test_tables_that_are_no_tables_of_rates() -> None:
    verdicts = ms.judge(pd.DataFrame({"prompt": TEXTS, "response": [REFUSAL, HELP], "label": [1, 0]}))
    with pytest.raises(ms.MechsafetyError, match=r"table\['label'\].replace\({'0': '...', '1': '...'}\)"):
        ms.refusal_rates(verdicts)
    for column, values, said in (
        ("label", [1, 0], ".replace({0: '...', 1: '...'}) renames"),
        (
            "label",
            ["unharmful", "Harmless"],
            ".replace({'Harmless': 'harmless', 'unharmful': '...'}) renames",
        ),
        ("arm", ["edit", "unedited"], ".replace({'edit': 'edited', 'unedited': '...'}) renames"),
        ("verdict", ["complied", None], ".replace({'complied': 'compliance'}).fillna('...') renames"),
        ("verdict", ["refusal", None], "table['verdict'].fillna('...') renames"),
    ):
        with pytest.raises(ms.MechsafetyError, match=re.escape(said)):
            ms.refusal_rates(verdicts.to_frame().assign(**{"label": "", column: values}))
    with pytest.raises(ms.MechsafetyError, match=r"\(ms.statistics.agreement\(verdicts\) makes one\) lacks"):
        ms.plots.judge_agreement(verdicts.to_frame())
    with pytest.raises(ms.MechsafetyError, match=r"a DataFrame \(its to_frame\(\) is one\)"):
        ms.plots.judge_agreement(verdicts)  # type: ignore[arg-type]


def test_shares_that_are_not_given_take_the_rest() -> None:
    prompts = ms.load_prompts([f"text {n}" for n in range(20)], label="harmful")

    def sizes(**shares: Any) -> list[int]:
        divided = prompts.split(**shares)
        return [len(divided.where(split=split)) for split in ("fit", "validation", "report")]

    assert sizes() == [12, 4, 4]
    assert sizes(fit=0.5) == [10, 5, 5]
    assert sizes(fit=0.8, report=0.2) == [16, 0, 4]
    with pytest.raises(ms.MechsafetyError, match="add up to 1"):
        sizes(fit=0.9, report=0.2)
    with pytest.raises(ms.MechsafetyError, match=r"no column 'Harmful' .did you mean 'harmful'"):
        ms.load_prompts(TEXTS, label="Harmful")
    assert len(prompts + ms.load_prompts(TEXTS)) == 22
