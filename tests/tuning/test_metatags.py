"""The tag of the rung ``metatags``: an answer that opens with it is withheld, or the tag cannot be said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.interventions import Ablate, edited
from mechsafety.generation.answered import Completions
from mechsafety.generation.answers import Example
from mechsafety.generation.completions import generate, stop_tokens
from mechsafety.judges.judging import judged_as
from mechsafety.models.chat import pad_left, tokenize_prompts
from mechsafety.models.forward import continued, forward
from mechsafety.models.loading import body_of, generation_twin, load_model
from mechsafety.models.prefixes import all_last_logits
from mechsafety.tuning import rungs
from mechsafety.tuning.rungs import TAG, WITHHELD, opens_with_tag, tag_forbidden, withheld
from mechsafety.tuning.training import TuningRecipe, train_adapter
from tests.prompt_sets import small_prompts
from tests.tuning.test_rungs import completion

PROMPTS = small_prompts(6).fit


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


@pytest.mark.parametrize(
    ("architecture", "batch_size", "with_edit"),
    [
        *(("llama", 6, True), ("llama", 1, False), ("gpt2", 6, False)),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                *(("llama", 6, False), ("llama", 1, True)),
                *(("gpt2", 6, True), ("gpt2", 1, False), ("gpt2", 1, True)),
            )
        ),
    ],
)
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
def test_later_in_an_answer_the_token_is_allowed(tagging: Callable[..., Any], architecture: str) -> None:
    model = tagging(architecture, dtype="bfloat16")
    tag = first_of_tag(model)
    prompts = [*PROMPTS.harmful, *PROMPTS.harmless]
    with tag_forbidden(model):
        answers = generate(model, prompts, max_new_tokens=6, seed=0)
    assert all(c.tokens[:1] != (tag,) for c in answers)
    assert any(tag in c.tokens for c in answers)
    with tag_forbidden(model, everywhere=True):
        answers = generate(model, prompts, max_new_tokens=6, seed=0)
    assert not any(tag in c.tokens for c in answers)


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
