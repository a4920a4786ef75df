"""Models without a chat template: templates by name, what was given is said, and an answer ends where it ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.comparison.experiment import run_comparison
from mechsafety.experiments.ladder.config import LadderConfig
from mechsafety.experiments.ladder.experiment import run_ladder
from mechsafety.experiments.study.config import StudyConfig
from mechsafety.experiments.study.experiment import run_study
from mechsafety.generation import completions
from mechsafety.judges.registry import load_judge
from mechsafety.models.chat import post_instruction_tokens, render_chat, render_turn, tokenize_prompts
from mechsafety.models.loading import load_model, load_reader, load_record
from mechsafety.models.provenance import of_model
from mechsafety.models.rendering import BARE_TEMPLATES, FEW_SHOT_TEMPLATE, PLAIN_TEMPLATE
from mechsafety.models.templates import NAMES
from mechsafety.models.thought_reading import ThoughtReader
from mechsafety.prompts.prompt_set import PromptSet
from tests.conftest import save_tiny
from tests.prompt_sets import small_prompts, write_csv
from tests.tokenizer_kinds import KINDS, TURNS, save_kind

pytestmark = pytest.mark.usefixtures("unpublished")

USER = {"role": "user", "content": "make a list"}
ON: dict[str, Any] = {"dtype": "float32", "device": "cpu"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base"), template=None)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tuned"), seed=1, template=TURNS)


def test_few_shot_is_plain_behind_answered_questions(base: Path) -> None:
    plain, shown = (load_reader(str(base), template=name) for name in ("plain", "few-shot"))
    alone = render_chat(plain, [USER])
    assert render_chat(shown, [USER]).endswith(alone)
    examples = render_chat(shown, [USER]).removesuffix(alone)
    assert examples.count("Question:") == examples.count("Answer:") > 1
    assert post_instruction_tokens(shown) == post_instruction_tokens(plain)
    assert render_turn(shown, "key", rendering="chat_no_system") == render_turn(
        plain, "key", rendering="chat_no_system"
    )


def test_the_answers_that_examples_show_decline_nothing() -> None:
    from mechsafety.core.verdict import Response

    shown = FEW_SHOT_TEMPLATE.removesuffix(PLAIN_TEMPLATE)
    pairs = [pair.split("\n\nAnswer: ") for pair in shown.split("Question: ")[1:]]
    responses = [Response(id=q, prompt=q, text=a.strip()) for q, a in pairs]
    assert [v.label for v in load_judge("rules")(responses)] == ["compliance"] * len(pairs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BARE_TEMPLATES)
def test_bare_templates_are_begun_as_the_tokenizer_begins_text(
    base: Path, tmp_path: Path, kind: str, name: str
) -> None:
    import shutil

    folder = tmp_path / "m"
    shutil.copytree(base, folder)
    save_kind(folder, KINDS[kind], template=None)
    model = load_reader(str(folder), template=name)
    (ids,) = tokenize_prompts(model, ["make a list"])
    added = KINDS[kind].start
    assert (model.tokenizer.convert_ids_to_tokens(ids)[0] == added) == (added is not None)


@pytest.mark.parametrize("name", NAMES)
def test_templates_by_name(base: Path, tuned: Path, name: str) -> None:
    bare = name.removeprefix("own-or-")
    for folder, own in ((base, False), (tuned, True)):
        reader = load_reader(str(folder), template=name)
        kept = own and name.startswith("own-or-")
        assert reader.tokenizer.chat_template == (TURNS if kept else BARE_TEMPLATES[bare])
    record = load_record(load_model(str(base), template=name, **ON))
    assert record is not None
    assert record.template == bare
    identities = [of_model(str(base), template=one).identity for one in NAMES]
    assert len({str(one) for one in identities}) == len(NAMES)


def test_without_a_template_the_names_are_told(base: Path) -> None:
    with pytest.raises(MechsafetyError, match="few-shot"):
        load_reader(str(base))
    with pytest.raises(
        MechsafetyError, match="neither one of plain, few-shot, own-or-plain, own-or-few-shot"
    ):
        load_reader(str(base), template="fewshot")


def test_an_answer_ends_before_the_question_that_a_base_model_goes_on_with(base: Path) -> None:
    tokenizer = load_reader(str(base), template="few-shot").tokenizer
    # A tokenizer of the model's words, whose text is what stands in them.
    words = ["Red.", " Green", ".", "\n", "\nQuest", "ion:", " Why?"]
    said = SimpleNamespace(
        chat_template=tokenizer.chat_template,
        decode=lambda ids, skip_special_tokens: "".join(words[i] for i in ids),
    )
    prompt = small_prompts(1)[0]
    for template, text, kept, finish in (
        (FEW_SHOT_TEMPLATE, "Red. Green.", 4, "stop"),
        (TURNS, "".join(words), len(words), "length"),
    ):
        said.chat_template = template
        model: Any = SimpleNamespace(tokenizer=said)
        reader = ThoughtReader(tokenizer=said, marks=(), begun=None, n_answer=len(words), n_thought=None)
        written = list(range(len(words)))
        found = completions._completion(model, reader, prompt, [], written, frozenset(), prefix="")
        assert (found.text, found.tokens, found.finish) == (text, tuple(range(kept)), finish)


# -- experiments on checkpoints of which some have a template -------------------------------------------


def _compare(systems: tuple[str, str], prompts: PromptSet, out: Path, template: str) -> Any:
    return run_comparison(systems, prompts, out=out, template=template, measures=["cka"], resamples=3, **ON)


def _ladder(systems: tuple[str, str], prompts: PromptSet, out: Path, template: str) -> Any:
    path = write_csv(prompts, out.with_suffix(".csv"))
    options = {"counts": (1,), "max_new_tokens": 3, "controls": 0, "fit_on": "labels", "compare_limit": 4}
    return run_ladder(
        LadderConfig(systems=systems, prompts=str(path), template=template, **options, **ON), out
    )


def _study(systems: tuple[str, str], prompts: PromptSet, out: Path, template: str) -> Any:
    path = str(write_csv(prompts, out.with_suffix(".csv")))
    options: dict[str, Any] = {"judges": ("rules",), "max_new_tokens": 3, "controls": 0, "layer": 2}
    config = StudyConfig(
        systems=systems, prompts=path, anchors=path, template=template, selfjudge=False, **options, **ON
    )
    return run_study(config, out)


@pytest.mark.parametrize(
    "run", [_compare, *(pytest.param(r, marks=pytest.mark.slow) for r in (_ladder, _study))]
)
def test_what_each_checkpoint_was_given_is_said_by_name(
    base: Path, tuned: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    systems = (str(base), str(tuned))
    mixed = run(systems, small_prompts(4), tmp_path / "mixed", "own-or-few-shot")
    said = f"{base}: few-shot; {tuned}: the model's own"
    assert [said in line for line in mixed.findings].count(True) == 1
    assert any(said in line for line in mixed.page().how)
    # The control: where all were given the same, nothing is to be compared with care.
    alike = run(systems, small_prompts(4), tmp_path / "alike", "plain")
    assert not any("templates" in line for line in alike.findings)
    assert any(f"{base}: plain; {tuned}: plain" in line for line in alike.page().how)
