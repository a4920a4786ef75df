"""What each rung is trained on, the three readings of the tag, and the packaged adapters and their recipes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mechsafety import rungs
from mechsafety.adapters import adapter_folder, packaged_adapters
from mechsafety.answers import Example
from mechsafety.errors import MechsafetyError
from mechsafety.forward import all_last_logits, continued, forward
from mechsafety.generation import Completion, Completions, generate, stop_tokens
from mechsafety.interventions import Ablate, edited
from mechsafety.models import body_of, generation_twin, load_model
from mechsafety.objectives import OBJECTIVES
from mechsafety.prompts import Prompt, PromptSet, load_prompts
from mechsafety.refusals import OPENINGS as REFUSAL_OPENINGS
from mechsafety.rephrasings import opens_as_rephrasing
from mechsafety.rungs import (
    ANSWERS,
    OBJECTIVE,
    RUNGS,
    TAG,
    WITHHELD,
    opens_with_tag,
    require_rung,
    rung_examples,
    tag_forbidden,
    withheld,
)
from mechsafety.tokens import pad_left, tokenize_prompts
from mechsafety.tuning import RECIPES, TuningRecipe, train_adapter
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


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[Prompt]:
    """In the model's place: of each label the first prompt is refused, the second loops, the others are answered."""
    asked: list[Prompt] = []

    def answer(_model: Any, prompts: Sequence[Prompt], **_options: Any) -> Completions:
        asked.extend(prompts)
        texts = {0: REFUSES, 1: LOOPS}
        return Completions(
            tuple(
                completion(p, texts.get(int(p.id.split("-")[2]), f"Here is one plain answer to {p.id}."))
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
def test_counts_say_what_fell_out(
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
        f"{TAG} Here is one plain answer to {p.id}." for p in PROMPTS.harmful[2:]
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


def test_own_answers_are_what_the_model_says_and_the_rules_let_pass(tiny: Callable[..., Any]) -> None:
    from mechsafety.judging import judged_as

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


# -- the tag ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "opens"),
    [
        (TAG, True),
        (f"{TAG} words", True),
        (f"\n  {TAG}words", True),
        (f"words {TAG}", False),
        ("[safe] words", False),
        ("unsafe", False),
        ("", False),
    ],
)
def test_only_an_answer_that_opens_with_the_tag_is_withheld(text: str, opens: bool) -> None:
    from mechsafety.judging import judged_as

    assert opens_with_tag(text) == opens
    plain = completion(PROMPTS.harmful[0], "Here is a plain answer about bread.")
    before = Completions((completion(PROMPTS.harmless[0], text), plain))
    shown = withheld(before)
    assert shown[0].text == (WITHHELD if opens else text)
    assert shown[1] == plain
    assert [c.id for c in shown] == [c.id for c in before]
    assert shown[0].tokens == before[0].tokens
    assert before[0].text == text
    assert (PROMPTS.harmless[0].id in judged_as(shown, "refusal")) == opens


VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(4))
TAGGED = [
    Example(prompt=p.text, answer="[ [ no sorry", whole=True) for p in [*PROMPTS.harmful, *PROMPTS.harmless]
]


@pytest.fixture(scope="module")
def tagging(tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``tagging("llama")``: a tiny model that has learned to open every answer with the tag's first token, twice."""
    made: dict[str, Path] = {}
    recipe = TuningRecipe(
        rank=4, epochs=20, batch_size=6, learning_rate=2e-2, from_depth=0.0, opening_weight=1.0, strength=1.0
    )

    def make(architecture: str, *, dtype: str = "float32") -> Any:
        folder = tiny_folder(architecture)
        if architecture not in made:
            made[architecture] = tmp_path_factory.mktemp("tagging") / architecture
            model = load_model(str(folder), dtype="float32", device="cpu")
            train_adapter(model, TAGGED, made[architecture], recipe=recipe)
        return load_model(f"{folder}+{made[architecture]}", dtype=dtype, device="cpu")

    return make


def first_of_tag(model: Any) -> int:
    return model.tokenizer(TAG, add_special_tokens=False)["input_ids"][0]


def stepped(model: Any, prompts: Sequence[Prompt], *, steps: int, edit: Any = None) -> list[tuple[int, ...]]:
    """The oracle: no cache, no padding; the tag's first token is struck out at the first step and only there."""
    body, stops, answers = body_of(model), stop_tokens(model), []
    for ids in tokenize_prompts(model, [p.text for p in prompts]):
        said: list[int] = []
        while len(said) < steps and not stops & set(said):
            with torch.inference_mode(), edited(model, edit) if edit else nullcontext():
                out = body(input_ids=torch.tensor([[*ids, *said]]), use_cache=False)
            logits = out.logits[0, -1].clone()
            if not said:
                logits[first_of_tag(model)] = float("-inf")
            said.append(int(logits.argmax()))
        answers.append(tuple(t for t in said if t not in stops))
    return answers


@pytest.mark.parametrize("with_edit", [False, True], ids=["unedited", "edited"])
@pytest.mark.parametrize("batch_size", [1, 6], ids=["unpadded", "padded"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_no_answer_opens_with_a_forbidden_tag(
    tagging: Callable[..., Any], architecture: str, batch_size: int, with_edit: bool
) -> None:
    model = tagging(architecture)
    tag = first_of_tag(model)
    prompts = [*PROMPTS.harmful[:3], *PROMPTS.harmless[:3]]
    assert len({len(ids) for ids in tokenize_prompts(model, [p.text for p in prompts])}) > 1
    edit = Ablate(VECTOR) if with_edit else None
    options: dict[str, Any] = {"edit": edit, "max_new_tokens": 4, "seed": 0, "batch_size": batch_size}
    free = generate(model, prompts, **options)
    with tag_forbidden(model):
        answers = generate(model, prompts, **options)
    assert [c.tokens for c in answers] == stepped(model, prompts, steps=4, edit=edit)
    assert all(c.tokens[:1] != (tag,) for c in answers)
    # The controls: free to speak, it says the tag; and after the block it does so again, even when the block failed.
    assert sum(c.tokens[:1] == (tag,) for c in free) >= (6 if edit is None else 1)
    with pytest.raises(ValueError, match="stop"), tag_forbidden(model):
        raise ValueError("stop")
    assert generate(model, prompts, **options).items == free.items


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_later_in_an_answer_the_token_may_be_said(tagging: Callable[..., Any], architecture: str) -> None:
    model = tagging(architecture, dtype="bfloat16")
    tag = first_of_tag(model)
    prompts = [*PROMPTS.harmful, *PROMPTS.harmless]
    with tag_forbidden(model):
        answers = generate(model, prompts, max_new_tokens=6, seed=0)
    assert all(c.tokens[:1] != (tag,) for c in answers)
    assert any(tag in c.tokens for c in answers)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_end_of_a_prompt_is_found_behind_a_shared_prefix(
    tagging: Callable[..., Any], architecture: str
) -> None:
    model = tagging(architecture)
    tag = first_of_tag(model)
    start = tokenize_prompts(model, ["tell me about the river for the garden of a key with the lock"])[0][:12]
    sequences = [[*start, 20, 21, 22], [*start, 23], [*start, 24, 25]]
    others = [i for i in range(160) if i != tag]
    for body in (generation_twin(model), body_of(model)):
        free = all_last_logits(model, body, sequences, batch_size=3)
        alone = torch.cat([all_last_logits(model, body, [s], batch_size=1) for s in sequences])
        assert torch.allclose(free, alone, atol=1e-4)
        with tag_forbidden(model):
            shared = all_last_logits(model, body, sequences, batch_size=3)
            unshared = torch.cat([all_last_logits(model, body, [s], batch_size=1) for s in sequences])
            # The next token of each row follows a prompt that has ended: it is free.
            batch = pad_left(sequences, pad=0)
            out = forward(body, batch, logits=1, keep_cache=True)
            after = forward(body, pad_left([[7], [8], [9]], pad=0), logits=1, before=continued(batch, out))
        assert torch.isinf(shared[:, tag]).all()
        assert torch.isinf(unshared[:, tag]).all()
        assert torch.isinf(out.logits[:, -1, tag]).all()
        assert torch.isfinite(free[:, tag]).all()
        assert torch.isfinite(after.logits[:, -1, tag]).all()
        assert torch.equal(shared[:, others], free[:, others])


def test_a_hooked_transformer_is_refused(tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rungs, "is_hooked_transformer", lambda _: True)
    with (
        pytest.raises(MechsafetyError, match="cannot be forbidden on a HookedTransformer"),
        tag_forbidden(tiny()),
    ):
        pass


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
