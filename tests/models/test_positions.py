"""An edit's positions mean the same however a model's cache counts: with it, without it, and where it has no length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mechsafety as ms
from mechsafety.edits.interventions import edited
from mechsafety.generation.scoring import answer_nll, option_log_probs
from mechsafety.models.chat import tokenize_prompts
from tests.architectures import kinds_first, save_architecture
from tests.kept_models import kept
from tests.models.test_batched_alone import TEMPLATES, prompts

NAMES = [
    *("llama", "opt", "bloom", "mpt", "gemma3", "llama4", "lfm2", "falcon-h1"),
    *("jamba", "mamba", "mamba2", "falcon-mamba"),
]
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(5))
STEPS = 4


def loaded(folder: Path, name: str) -> Any:
    path = save_architecture(folder, name, template=TEMPLATES["no prefix"])
    return ms.load_model(str(path), dtype="float32", device="cpu")


def by_hand(model: Any, tokens: list[int], edit: Any) -> list[int]:
    """Greedy steps of one prompt, the whole sequence at each: which columns are prompt is told once."""
    whole = list(tokens)
    while len(whole) < len(tokens) + STEPS:
        with torch.inference_mode(), edited(model, edit, prompt_length=len(tokens)):
            logits = model.original_model(input_ids=torch.tensor([whole]), use_cache=False).logits
        token = int(logits[0, -1].argmax())
        if token == 1:
            break
        whole.append(token)
    return whole[len(tokens) :]


@pytest.mark.parametrize("name", kinds_first(NAMES))
def test_answers_under_an_edit_at_some_positions(name: str) -> None:
    model = kept(name, template=TEMPLATES["no prefix"])
    sequences = tokenize_prompts(model, [p.text for p in prompts()])
    plain = [c.tokens for c in ms.generate(model, prompts(), max_new_tokens=STEPS, seed=0)]
    moved = 0
    for positions in ("prompt", "last_prompt", "generated"):
        edit = ms.Add(4 * VECTOR, layer=1, positions=positions)
        done = [c.tokens for c in ms.generate(model, prompts(), edit=edit, max_new_tokens=STEPS, seed=0)]
        moved += done != plain
        if (
            positions == "generated"
        ):  # by hand the edit would reach no first pass: it is complete from the second on
            with pytest.raises(ms.MechsafetyError, match="touched nothing"), edited(model, edit):
                pass
        assert done == [tuple(by_hand(model, tokens, edit)) for tokens in sequences], positions
    assert moved  # the edits do something


@pytest.mark.parametrize("positions", ["all", "prompt", "last_prompt", "generated"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "mamba2", "falcon-h1"])
def test_likelihood_of_an_answer_is_that_of_the_option(name: str, positions: Any) -> None:
    model = kept(name, template=TEMPLATES["no prefix"])
    contexts = tokenize_prompts(model, [p.text for p in prompts()])
    answer = [8, 9, 10]
    edit = ms.Add(4 * VECTOR, layer=1, positions=positions)
    options = option_log_probs(model, contexts, [answer], edit=edit)[:, 0]
    nll = answer_nll(model, contexts, [answer] * len(contexts), edit=edit)
    torch.testing.assert_close(
        torch.tensor(nll, dtype=torch.float64) * -len(answer), options, atol=1e-3, rtol=1e-4
    )


ADD = ms.Add(4 * VECTOR, layer=1, positions="last_prompt")


def texts(model: Any) -> list[list[int]]:
    return sorted((s for s in tokenize_prompts(model, [p.text for p in prompts()])), key=len)[
        :: len(prompts()) - 1
    ]


def test_rows_padded_on_the_right_end_where_their_tokens_do(tmp_path: Path) -> None:
    model = loaded(tmp_path, "llama")
    short, long = texts(model)
    assert len(short) < len(long)
    for pad, ending in ((0, []), (7, [7])):  # the second: each prompt ends in the token that pads
        model.tokenizer.pad_token_id = pad
        rows = [short + ending, long + ending]
        ids = torch.tensor([rows[0] + [pad] * (len(rows[1]) - len(rows[0])), rows[1]])
        with torch.inference_mode():
            with edited(model, ADD) as receipt:
                together = model.original_model(input_ids=ids).logits[[0, 1], [len(r) - 1 for r in rows]]
            assert receipt.summary()["positions"] == 2
            alone = []
            for row in rows:
                with edited(model, ADD):
                    alone.append(model.original_model(input_ids=torch.tensor([row])).logits[0, -1])
            plain = model.original_model(input_ids=ids).logits[0, len(rows[0]) - 1]
        torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-4)
        assert (together[0] - plain).abs().max() > 0.05


@pytest.mark.parametrize("positions", ["prompt", "last_prompt", "generated"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_the_models_own_generate_has_one_prompt_with_a_cache_and_without(name: str, positions: Any) -> None:
    model = kept(name, template=TEMPLATES["no prefix"])
    tokens = texts(model)[1]
    edit = ms.Add(4 * VECTOR, layer=1, positions=positions)
    ids = torch.tensor([tokens])
    own: dict[str, Any] = {
        "max_new_tokens": STEPS,
        "do_sample": False,
        "verbose": False,
        "stop_at_eos": False,
    }

    def bridged(cached: bool) -> list[int]:
        out = model.generate(ids, use_past_kv_cache=cached, return_type="tokens", **own)
        return out[0, len(tokens) :].tolist()

    def plainly(cached: bool) -> list[int]:
        out = model.original_model.generate(
            ids, max_new_tokens=STEPS, do_sample=False, use_cache=cached, eos_token_id=None
        )
        return out[0, len(tokens) :].tolist()

    for way in (bridged, plainly):
        found = []
        for cached in (True, False):
            with edited(model, edit) as receipt:
                found.append(way(cached))
                again = way(cached)  # each answer has its own prompt
            assert again == found[-1]
            assert receipt.summary()["positions"] > 0
        assert found[0] == found[1]
    assert not {"generate", "hf_generate"} & model.__dict__.keys()


@pytest.mark.parametrize("name", ["mamba", pytest.param("mamba2", marks=pytest.mark.slow)])
def test_a_state_without_a_length_counts_each_column_once(tmp_path: Path, name: str) -> None:
    """In several answers under one edit, and where the base gets copies of the tokens, as on another device."""
    model = loaded(tmp_path, name)
    tokens = texts(model)[1]
    options: dict[str, Any] = {"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": None}

    def answer() -> list[int]:
        out = model.original_model.generate(torch.tensor([tokens]), **options)
        return out[0, len(tokens) :].tolist()

    def copied(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return tuple(a.clone() if isinstance(a, torch.Tensor) else a for a in args), kwargs

    answers = []
    for positions in ("prompt", "last_prompt", "generated"):
        edit = ms.Add(4 * VECTOR, layer=1, positions=positions)
        want = by_hand(model, tokens, edit)
        with edited(model, edit):
            assert answer()[: len(want)] == want
            assert answer()[: len(want)] == want
        handle = model.original_model.base_model.register_forward_pre_hook(copied, with_kwargs=True)
        with edited(model, edit):
            assert answer()[: len(want)] == want
        handle.remove()
        answers.append(want)
    assert len({tuple(a) for a in answers}) > 1


def test_a_pass_that_goes_on_without_a_cache_is_an_error_unless_the_length_is_given(tmp_path: Path) -> None:
    model = loaded(tmp_path, "llama")
    ids = torch.tensor([texts(model)[1]])
    longer = torch.cat([ids, ids[:, :1]], dim=1)
    with torch.inference_mode():
        with edited(model, ADD):
            model.original_model(input_ids=ids)
            with pytest.raises(ms.MechsafetyError, match="prompt_length"):
                model.original_model(input_ids=longer)
        with edited(model, ADD, prompt_length=ids.shape[1]) as receipt:
            model.original_model(input_ids=ids)
            model.original_model(input_ids=longer)
        assert receipt.summary()["positions"] == 2
        with edited(model, ADD):  # another prompt of whatever length is no answer to the first
            model.original_model(input_ids=ids)
            model.original_model(input_ids=longer.flip(-1))
