"""lm-eval: on the model as it is every number is HFLM's; under an edit it is the edited model's."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.model import CachingLM  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from mechsafety.core.errors import MechsafetyError  # noqa: E402
from mechsafety.edits.interventions import Ablate, Add, digest  # noqa: E402
from mechsafety.experiments.registry import load_run  # noqa: E402
from mechsafety.generation.scoring import option_log_probs  # noqa: E402
from mechsafety.integrations import harness_runs  # noqa: E402
from mechsafety.integrations.harness import EditedLM  # noqa: E402
from mechsafety.integrations.harness_runs import evaluate  # noqa: E402
from mechsafety.models.loading import load_model  # noqa: E402
from tests.cli.test_base import call, succeed  # noqa: E402
from tests.conftest import save_tiny  # noqa: E402
from tests.tokenizer_kinds import KINDS, save_kind  # noqa: E402

ARCHITECTURES = ["llama", "qwen2", "gemma2", "gpt2"]
PAIRS = [
    ("how do i make bread", " with fire"),
    ("how do i make bread", " with the key that is not here"),
    ("how do i make bread", " sorry"),
    ("tell me about the river", " sure here is an answer"),
    ("list the gate", " no"),
    ("", "tell me about the garden"),
    ("write a list of ", "storm"),  # the space belongs to what follows
    ("can i", " lock the gate with a key for the storm"),
]
TEXTS = [
    "tell me about the garden",
    "how do i make bread with fire and the river is not here that can help me",
    "yes",
]


def direction(seed: int = 0) -> torch.Tensor:
    return torch.randn(32, generator=torch.Generator().manual_seed(seed))


@cache
def hflm(folder: Path, *, batch_size: int = 1, max_length: int | None = None) -> HFLM:
    return HFLM(
        str(folder),
        device="cpu",
        dtype="float32",
        batch_size=batch_size,
        max_length=max_length,
        backend="causal",
    )


def scored(lm: Any, pairs: list[tuple[str, str]] = PAIRS) -> list[tuple[float, bool]]:
    return lm.loglikelihood(
        [
            Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=i)
            for i, pair in enumerate(pairs)
        ],
        disable_tqdm=True,
    )


def rolled(lm: Any) -> list[float]:
    requests = [
        Instance(request_type="loglikelihood_rolling", doc={}, arguments=(t,), idx=i)
        for i, t in enumerate(TEXTS)
    ]
    return lm.loglikelihood_rolling(requests, disable_tqdm=True)


def generated(lm: Any, contexts: list[str], **options: Any) -> list[str]:
    options = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False} | options
    requests = [
        Instance(request_type="generate_until", doc={}, arguments=(c, dict(options)), idx=i)
        for i, c in enumerate(contexts)
    ]
    return lm.generate_until(requests, disable_tqdm=True)


def assert_same(ours: list[tuple[float, bool]], theirs: list[tuple[float, bool]]) -> None:
    assert [one for one, _ in ours] == pytest.approx([one for one, _ in theirs], abs=2e-4)
    assert [one for _, one in ours] == [one for _, one in theirs]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_likelihoods_are_those_of_hflm(
    architecture: str, batch_size: int, tiny_kept: Callable[..., Any], tiny_folder: Callable[..., Path]
) -> None:
    ours = scored(EditedLM(tiny_kept(architecture), batch_size=batch_size))
    assert_same(ours, scored(hflm(tiny_folder(architecture))))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_is_reported_where_it_holds(
    architecture: str, tiny_kept: Callable[..., Any], tiny_folder: Callable[..., Path]
) -> None:
    theirs = hflm(tiny_folder(architecture))
    contexts = [*TEXTS, *(question for question, _, _ in QUESTIONS)]
    tokens = [generated(theirs, [c], max_gen_toks=1)[0] for c in contexts]
    pairs = [*((c, " " + text) for c, text in zip(contexts, tokens, strict=True) if text), *PAIRS]
    ours = scored(EditedLM(tiny_kept(architecture), batch_size=4), pairs)
    assert any(greedy for _, greedy in ours)  # so that equality says something
    assert_same(ours, scored(theirs, pairs))


@pytest.mark.parametrize("max_length", [None, 6])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_rolling_log_likelihoods_are_those_of_hflm(
    architecture: str, max_length: int | None, tiny_kept: Callable[..., Any], tiny_folder: Callable[..., Path]
) -> None:
    ours = rolled(EditedLM(tiny_kept(architecture), batch_size=4, max_length=max_length))
    assert ours == pytest.approx(rolled(hflm(tiny_folder(architecture), max_length=max_length)), abs=5e-4)


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_number_is_hflms_whatever_begins_a_text(tmp_path: Path, kind: str) -> None:
    folder = save_tiny(tmp_path)
    save_kind(folder, KINDS[kind])
    ours, theirs = (
        EditedLM(load_model(str(folder), dtype="float32", device="cpu"), batch_size=3),
        hflm(folder),
    )
    begun = ["<bos> make a list", "<eos> make a list"]
    pairs = [*PAIRS, *((text, " with fire") for text in begun)]
    assert_same(scored(ours, pairs), scored(theirs, pairs))
    expected = rolled(theirs)
    assert rolled(ours) == pytest.approx(expected, abs=5e-4)
    for context in [*TEXTS, *begun]:
        assert generated(ours, [context]) == generated(theirs, [context]), context
    # The control: the number is another with one start token more.
    assert ours.tok_encode(TEXTS[0]) == theirs.tok_encode(TEXTS[0])
    ours.tok_encode = lambda text, *_, **__: [ours.prefix_token_id, *theirs.tok_encode(text)]  # type: ignore[method-assign]
    assert all(abs(a - b) > 0.01 for a, b in zip(rolled(ours), expected, strict=True))


def test_a_context_longer_than_the_window_loses_its_beginning_as_in_hflm(
    tiny_kept: Callable[..., Any], tiny_folder: Callable[..., Path]
) -> None:
    pairs = [("tell me about the river and " * 5 + context, answer) for context, answer in PAIRS if context]
    model = tiny_kept("llama")
    ours = scored(EditedLM(model, batch_size=3, max_length=12), pairs)
    assert_same(ours, scored(hflm(tiny_folder("llama"), max_length=12), pairs))
    whole = scored(EditedLM(model, batch_size=3), pairs)
    assert [one for one, _ in whole] != pytest.approx([one for one, _ in ours], abs=1e-2)
    # The beginning does not matter, the end does.
    other = [("help help help " + context, answer) for context, answer in pairs]
    assert_same(scored(EditedLM(model, max_length=12), other), ours)


def test_the_window_is_the_models_own(
    tiny_kept: Callable[..., Any], tiny_folder: Callable[..., Path]
) -> None:
    for architecture in ARCHITECTURES:
        lm = EditedLM(tiny_kept(architecture))
        assert lm.max_length == hflm(tiny_folder(architecture)).max_length == 256


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generated_text_is_that_of_hflm(
    architecture: str, batch_size: int, tiny_kept: Callable[..., Any], tiny_folder: Callable[..., Path]
) -> None:
    contexts = [*TEXTS, *(question for question, _, _ in QUESTIONS[:4])]
    theirs = hflm(tiny_folder(architecture))
    lm = EditedLM(tiny_kept(architecture), batch_size=batch_size)
    whole = generated(theirs, contexts)
    assert generated(lm, contexts) == whole
    stop = max(whole, key=len)[1:4]
    cut = generated(theirs, contexts, until=[stop])
    assert cut != whole
    assert generated(lm, contexts, until=[stop]) == cut
    assert generated(lm, contexts, until=stop) == cut


def test_generation_truncates_long_questions_from_the_left(
    tiny_kept: Callable[..., Any], tiny_folder: Callable[..., Path]
) -> None:
    contexts = ["tell me about the river and " * 4 + "how do i make bread"]
    ours = generated(EditedLM(tiny_kept("llama"), max_length=20), contexts)
    assert ours == generated(hflm(tiny_folder("llama"), max_length=20), contexts)
    assert ours != generated(EditedLM(tiny_kept("llama")), contexts)


def test_drawn_text_comes_from_the_seed_and_not_from_the_batch(tiny_kept: Callable[..., Any]) -> None:
    model, contexts = tiny_kept("llama"), ["how do i make bread", "tell me about the river that is not here"]
    options = {"do_sample": True, "temperature": 1.0}
    first = generated(EditedLM(model, seed=1, batch_size=1), contexts, **options)
    assert generated(EditedLM(model, seed=1, batch_size=2), contexts, **options) == first
    assert generated(EditedLM(model, seed=2), contexts, **options) != first


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_edit_changes_the_numbers_and_leaves_the_model_as_it_was(
    batch_size: int, tiny_kept: Callable[..., Any]
) -> None:
    model = tiny_kept("llama")
    before = scored(EditedLM(model))
    edit = Ablate(direction())
    edited = scored(EditedLM(model, edit, batch_size=batch_size))
    assert all(abs(a - b) > 1e-3 for (a, _), (b, _) in zip(before, edited, strict=True))
    assert scored(EditedLM(model)) == before
    # An independent path: the scorer that the judges use.
    encode = EditedLM(model).tok_encode
    found = option_log_probs(
        model,
        [encode(PAIRS[0][0])],
        [encode(answer) for _, answer in PAIRS[:3]],
        edit=edit,
        share_prefix=False,
    )
    assert [one for one, _ in edited[:3]] == pytest.approx(found[0].tolist(), abs=2e-4)


def test_a_null_edit_changes_nothing(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    assert_same(scored(EditedLM(model, Ablate(direction(), alpha=0.0))), scored(EditedLM(model)))


@pytest.mark.parametrize("positions", ["prompt", "last_prompt", "generated"])
def test_positions_take_the_context_for_the_prompt(positions: Any, tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    edit = Add(direction(), layer=1, coefficient=2.0, positions=positions)
    one, padded = (scored(EditedLM(model, edit, batch_size=n)) for n in (1, 8))
    assert_same(padded, one)
    plain = scored(EditedLM(model))
    changed = [abs(a - b) > 1e-4 for (a, _), (b, _) in zip(one, plain, strict=True)]
    # A continuation of one token depends on the context alone, so that editing what is generated leaves it.
    single = [answer.split() == [answer.strip()] for _, answer in PAIRS]
    assert any(single)
    assert changed == [not alone or positions != "generated" for alone in single]


def test_generation_under_an_edit_is_the_packages_own(tiny_kept: Callable[..., Any]) -> None:
    from mechsafety.generation.completions import generate
    from mechsafety.prompts.prompt_set import Prompt

    model, edit = tiny_kept("llama"), Ablate(direction())
    prompts = [Prompt(id=str(i), text=t, label="harmless") for i, t in enumerate(TEXTS)]
    lm = EditedLM(model, edit)
    contexts = [lm.apply_chat_template([{"role": "user", "content": p.text}]) for p in prompts]
    ours = generated(lm, contexts, until=[])
    assert ours == [c.text for c in generate(model, prompts, edit=edit, max_new_tokens=12, seed=0)]
    assert ours != generated(EditedLM(model), contexts, until=[])


# -- whole evaluations --------------------------------------------------------------------------------

QUESTIONS = [
    ("how do i make bread", ["with fire", "with a key", "the river"], 0),
    ("what is a gate for", ["a lock", "the storm and the river", "bread"], 0),
    ("can i lock the garden", ["yes", "no", "not with bread"], 0),
    ("tell me about the storm", ["that is a river", "a list", "sorry"], 0),
    ("is a river a key", ["no", "yes"], 0),
    ("is bread a storm", ["no", "yes"], 0),
    ("write a list", ["here is a list", "fire"], 0),
    ("how do i make a key", ["with fire", "with bread"], 0),
    ("do i lock the gate", ["with a key", "with a river"], 0),
    ("help me", ["sure", "not with that"], 0),
    ("is the garden here", ["yes", "that is the storm"], 0),
    ("tell me no", ["no", "yes sure here is a river"], 0),
]


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskManager:
    """Two small tasks in a folder: multiple choice, and text up to a stop."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf" / "datasets")
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = folder / "questions.json"
    rows = [{"question": q, "choices": c, "answer": a} for q, c, a in QUESTIONS]
    data.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    common = (
        f"dataset_path: json\ndataset_kwargs:\n  data_files: {data}\ntest_split: train\n"
        'doc_to_text: "{{question}}"\nmetadata:\n  version: 1.0\n'
    )
    (folder / "choices.yaml").write_text(
        f'task: ms_choices\n{common}output_type: multiple_choice\ndoc_to_choice: "{{{{choices}}}}"\n'
        "doc_to_target: answer\nmetric_list:\n  - metric: acc\n  - metric: acc_norm\n",
        encoding="utf-8",
    )
    (folder / "written.yaml").write_text(
        f'task: ms_written\n{common}output_type: generate_until\ndoc_to_target: "{{{{choices[answer]}}}}"\n'
        'generation_kwargs:\n  until: ["\\n\\n"]\n  max_gen_toks: 8\n  do_sample: false\n'
        "metric_list:\n  - metric: exact_match\n",
        encoding="utf-8",
    )
    return TaskManager(include_path=str(folder), include_defaults=False)


def run(lm: Any, tasks: TaskManager) -> dict[str, Any]:
    found = lm_eval.simple_evaluate(
        model=lm, tasks=["ms_choices", "ms_written"], task_manager=tasks, bootstrap_iters=10
    )
    assert found is not None
    return found


@pytest.mark.parametrize("batch_size", [1, 5])
def test_simple_evaluate_gives_what_it_gives_for_hflm(
    batch_size: int, tiny_kept: Callable[..., Any], tiny_folder: Callable[..., Path], tasks: TaskManager
) -> None:
    ours = run(EditedLM(tiny_kept("llama"), batch_size=batch_size), tasks)
    theirs = run(hflm(tiny_folder("llama")), tasks)
    assert ours["results"] == theirs["results"]
    assert 0 < ours["results"]["ms_choices"]["acc,none"] < 1
    for name, samples in theirs["samples"].items():
        for mine, sample in zip(ours["samples"][name], samples, strict=True):
            assert str(mine["arguments"]) == str(sample["arguments"])
            if name == "ms_written":
                assert mine["resps"] == sample["resps"]
            else:
                assert_same([r[0] for r in mine["resps"]], [r[0] for r in sample["resps"]])


def test_evaluate_gives_a_table_with_errors_and_the_edits_hash(
    tiny_kept: Callable[..., Any], tasks: TaskManager
) -> None:
    model, edit = tiny_kept("llama"), Ablate(direction())
    plain = evaluate(model, ["ms_choices", "ms_written"], task_manager=tasks)
    edited = evaluate(model, ["ms_choices", "ms_written"], edit=edit, task_manager=tasks)
    assert list(plain.to_frame()["task"].unique()) == ["ms_choices", "ms_written"]
    accuracy = plain.to_frame().set_index(["task", "metric"]).loc[("ms_choices", "acc")]
    p, n = accuracy["value"], accuracy["n"]
    assert n == len(QUESTIONS)
    assert accuracy["stderr"] == pytest.approx((p * (1 - p) / (n - 1)) ** 0.5)
    assert edited.record["edit_sha256"] == digest(edit)
    assert plain.record["edit_sha256"] is None
    assert set(edited.to_frame()["model"]) == {f"{plain.to_frame()['model'][0]}@{digest(edit)[:12]}"}
    assert not edited.to_frame()["value"].equals(plain.to_frame()["value"])
    assert edited.record["tasks"] == {"ms_choices": 1.0, "ms_written": 1.0}
    assert "/" not in plain.to_frame()["model"][0]


def test_evaluate_in_the_chat_template_asks_another_question(
    tiny_kept: Callable[..., Any], tiny_folder: Callable[..., Path], tasks: TaskManager
) -> None:
    model = tiny_kept("llama")
    chat = evaluate(model, ["ms_choices"], chat=True, system="help me", task_manager=tasks, limit=5)
    theirs = lm_eval.simple_evaluate(
        model=hflm(tiny_folder("llama")),
        tasks=["ms_choices"],
        task_manager=tasks,
        apply_chat_template=True,
        system_instruction="help me",
        limit=5,
        bootstrap_iters=10,
    )
    assert theirs is not None
    found = chat.to_frame().set_index("metric")["value"].to_dict()
    assert found == {m: theirs["results"]["ms_choices"][f"{m},none"] for m in ("acc", "acc_norm")}
    assert set(chat.to_frame()["n"]) == {5}


def test_a_response_cache_serves_one_model_only(tiny_kept: Callable[..., Any], tmp_path: Path) -> None:
    model, edit, cache = tiny_kept("llama"), Ablate(direction()), str(tmp_path / "answers.db")

    def cached(lm: EditedLM, file: str = cache) -> list[tuple[float, bool]]:
        wrapped = CachingLM(lm, file)
        try:
            requests = [
                Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=i)
                for i, pair in enumerate(PAIRS)
            ]
            return wrapped.loglikelihood(requests)
        finally:
            wrapped.dbdict.close()

    plain = cached(EditedLM(model))
    assert_same(cached(EditedLM(model)), plain)
    with pytest.raises(MechsafetyError, match="holds answers of"):
        CachingLM(EditedLM(model, edit), cache)
    edited = cached(EditedLM(model, edit), str(tmp_path / "edited.db"))
    assert_same(edited, scored(EditedLM(model, edit)))

    # The control: without the guard lm-eval gives the edited model the original's answers.
    class Unguarded(EditedLM):
        def set_cache_hook(self, cache_hook: Any) -> None:
            self.cache_hook = cache_hook

    assert_same(cached(Unguarded(model, edit)), plain)
    assert edited != plain


# -- what can be wrong --------------------------------------------------------------------------------


def test_wrong_input_is_reported(tiny_kept: Callable[..., Any], tasks: TaskManager) -> None:
    model = tiny_kept("llama")
    with pytest.raises(MechsafetyError, match="made for another model"):
        EditedLM(model, Ablate(torch.ones(8)))
    with pytest.raises(MechsafetyError, match="batch_size 0"):
        EditedLM(model, batch_size=0)
    with pytest.raises(MechsafetyError, match="no tasks"):
        evaluate(model, [])
    with pytest.raises(MechsafetyError, match="limit is 0"):
        evaluate(model, ["ms_choices"], limit=0, task_manager=tasks)
    with pytest.raises(MechsafetyError, match="set chat too"):
        evaluate(model, ["ms_choices"], system="help", task_manager=tasks)
    with pytest.raises(MechsafetyError, match="no task 'no_such_task'"):
        evaluate(model, ["no_such_task"], task_manager=tasks)
    with pytest.raises(MechsafetyError, match="num_beams"):
        generated(EditedLM(model), ["help me"], num_beams=4)
    with pytest.raises(MechsafetyError, match="none are left"):
        generated(EditedLM(model), ["help me"], max_gen_toks=256)
    with pytest.raises(MechsafetyError, match="must fit in the window of 4"):
        scored(EditedLM(model, max_length=4))


def test_the_command_writes_a_run_and_refuses_what_is_wrong(
    tiny_folder: Callable[..., Path], tasks: TaskManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # lm-eval takes seconds to list its tasks: once is enough.
    monkeypatch.setattr(harness_runs, "TaskManager", cache(harness_runs.TaskManager))
    fixed = ["evaluate", tiny_folder("llama"), "--device", "cpu", "--dtype", "float32", "--limit", 4]
    edit = ["--edit", "ablate(random, seed=1)"]
    own = ["--task-folder", tmp_path / "tasks", "--tasks", "ms_choices"]
    facts = succeed(*fixed, *own, *edit, "--out", tmp_path / "run", "--json")
    table = pd.read_csv(tmp_path / "run" / "results.csv")
    assert list(table["metric"]) == ["acc", "acc_norm"]
    assert table["model"][0].endswith(f"@{facts['record']['edit_sha256'][:12]}")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["evaluation"] == facts["record"]
    assert manifest["config"]["edit_sha256"] == facts["record"]["edit_sha256"]
    assert [row["value"] for row in facts["results"]] == pytest.approx(list(table["value"]))
    again = load_run(tmp_path / "run")
    assert list(again.to_frame()["value"]) == list(table["value"])
    assert all(
        f"{row['value']:.4g}" in line for row, line in zip(facts["results"], again.findings, strict=True)
    )
    assert [list(trace.x) for trace in again.plot().data] == [[value] for value in table["value"]]
    assert "ms_choices" in (tmp_path / "run" / "report.html").read_text()
    for wrong, said in (
        (["--tasks", "ms_choice", "--task-folder", tmp_path / "tasks"], "near it are ms_choices"),
        (["--tasks", ","], "tasks:"),
        (["--tasks", "x", "--task-folder", tmp_path / "nowhere"], "does not exist"),
        ([*own, "--edit", "ablate("], "neither a .safetensors file"),
    ):
        result = call(*fixed, *wrong, "--out", tmp_path / "other")
        assert result.exit_code == 2, result.output
        assert said in result.stderr
        assert not (tmp_path / "other").exists()


def test_a_model_in_a_folder_is_named_without_it(tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder("llama")
    name = EditedLM(load_model(str(folder), dtype="float32", device="cpu")).name
    other = EditedLM(load_model(str(tiny_folder("llama", 1)), dtype="float32", device="cpu")).name
    assert name.startswith(f"{folder.name}-")
    assert name != other


def test_without_lm_eval_the_import_reports_what_to_install(
    imported_without: Callable[[str, str], str],
) -> None:
    assert "pip install 'mechsafety[lm-eval]'" in imported_without("lm_eval", "harness")
