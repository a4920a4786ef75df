"""A cache holds what the model computes, whatever the batching."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mechsafety.core.errors import MechsafetyError
from mechsafety.directions.activations import residual_stream
from mechsafety.edits.interventions import Add, edited
from mechsafety.models.chat import (
    last_columns,
    pad_left,
    plan_batches,
    post_instruction_tokens,
    tokenize_prompts,
)
from mechsafety.models.forward import forward
from mechsafety.models.hooking import observed
from mechsafety.models.loading import PLAIN_TEMPLATE, body_of
from tests.prompt_sets import small_prompts

ARCHITECTURES = ["llama", "gpt2", "gemma2"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cache_equals_hugging_face_hidden_states(tiny: Callable[..., Any], architecture: str) -> None:
    model, prompts = tiny(architecture), small_prompts().fit
    cache = residual_stream(model, prompts, positions=(-1, -3), batch_size=5)
    plain = model.__dict__["_mechsafety_twin"]
    for row, sequence in enumerate(tokenize_prompts(model, [p.text for p in prompts])):
        with torch.inference_mode():
            out = plain(input_ids=torch.tensor([sequence]), output_hidden_states=True)
        for place, position in enumerate((-1, -3)):
            for layer in range(model.cfg.n_layers):
                torch.testing.assert_close(
                    cache.activations[row, place, layer],
                    out.hidden_states[layer][0, position].float(),
                    rtol=1e-4,
                    atol=1e-4,
                )


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_batching_and_padding_change_nothing(
    tiny_kept: Callable[..., Any], architecture: str, dtype: str
) -> None:
    model, prompts = tiny_kept(architecture, dtype=dtype), small_prompts().fit
    together = residual_stream(model, prompts, batch_size=64)
    singly = residual_stream(model, prompts, batch_size=1)
    tolerance = 1e-4 if dtype == "float32" else 0.15
    torch.testing.assert_close(together.activations, singly.activations, rtol=tolerance, atol=tolerance)
    assert together.activations.dtype == torch.float32
    # The control: prompts differ from one another by far more than that.
    assert (together.activations[0] - together.activations[1]).abs().max() > 3 * tolerance


@pytest.mark.parametrize("positions", ["all", "prompt", "last_prompt"])
def test_edits_act_on_the_same_tokens_when_the_prompts_share_their_first(
    tiny: Callable[..., Any], positions: Any
) -> None:
    model, prompts = tiny("llama"), small_prompts(2).fit
    model.tokenizer.chat_template = "make a list of the river for me about gate key: " + PLAIN_TEMPLATE
    before = residual_stream(model, prompts).activations[:, 0, -1]
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []
    with edited(model, Add(vector, layer=1, positions=positions)):
        found = residual_stream(model, prompts).activations[:, 0, -1]
        with observed(model, [("blocks.3.hook_resid_post", lambda x: seen.append(x[0, -1]))], twin=None):
            for sequence in tokenize_prompts(model, [p.text for p in prompts]):
                forward(body_of(model), pad_left([sequence], pad=0), logits=None)
    torch.testing.assert_close(found, torch.stack(seen), rtol=1e-4, atol=1e-4)
    assert (found - before).abs().max() > 0.05


def test_last_layer_is_the_last_blocks_output(tiny_kept: Callable[..., Any]) -> None:
    model, prompts = tiny_kept("llama"), small_prompts(2).fit
    cache = residual_stream(model, prompts)
    assert cache.n_layers == model.cfg.n_layers + 1
    norm, head = model.ln_final, model.unembed
    sequence = tokenize_prompts(model, [prompts[0].text])[0]
    with torch.inference_mode():
        expected = model.original_model(input_ids=torch.tensor([sequence])).logits[0, -1]
        got = head(norm(cache.activations[0, 0, -1][None, None]))[0, 0]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_select_gives_the_rows_of_a_label(tiny_kept: Callable[..., Any]) -> None:
    cache = residual_stream(tiny_kept("llama"), small_prompts().fit)
    n = len(cache.select("harmful"))
    assert n == 6
    assert torch.equal(torch.cat([cache.select("harmful"), cache.select("harmless")]), cache.activations)


@pytest.mark.parametrize(
    ("positions", "message"), [((0,), "offsets"), ((), "offsets"), ((-999,), "before the shortest")]
)
def test_bad_positions(tiny_kept: Callable[..., Any], positions: tuple[int, ...], message: str) -> None:
    with pytest.raises(MechsafetyError, match=message):
        residual_stream(tiny_kept("llama"), small_prompts(2).fit, positions=positions)


def test_no_prompts_and_missing_labels(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    with pytest.raises(MechsafetyError, match="no prompts"):
        residual_stream(model, [])
    with pytest.raises(MechsafetyError, match="no harmless prompts"):
        residual_stream(model, small_prompts(2).fit.harmful).select("harmless")


def test_post_instruction_tokens_are_what_the_template_puts_last(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    found = post_instruction_tokens(model)
    assert model.tokenizer.convert_ids_to_tokens(found) == ["Answer", ":"] or len(found) >= 1
    for sequence in tokenize_prompts(model, ["bread", "the river"]):
        assert sequence[-len(found) :] == found


def test_plan_is_sorted_whole_and_fixed() -> None:
    lengths = [3, 9, 4, 9, 1, 7, 2]
    plan = plan_batches(lengths, batch_size=3)
    assert sorted(row for batch in plan for row in batch) == list(range(7))
    assert [lengths[row] for batch in plan for row in batch] == sorted(lengths, reverse=True)
    assert plan == plan_batches(lengths, batch_size=3)


def test_last_columns_on_both_sides() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]])
    assert last_columns(mask).tolist() == [3, 1, 3, 2]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_unembedding_gets_its_input_in_line(tiny: Callable[..., Any], architecture: str) -> None:
    """A strided last position would be multiplied row by row, copying the whole table each time."""
    model = tiny(architecture)
    seen: list[bool] = []
    twin = model.__dict__["_mechsafety_twin"]
    for table in (model.unembed.original_component, twin.get_output_embeddings()):
        table.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].is_contiguous()))
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    with torch.inference_mode():
        model.original_model(input_ids=ids, logits_to_keep=1)
        twin(input_ids=ids, logits_to_keep=1)
    assert seen == [True, True]
    assert not torch.zeros(2, 3, 4)[:, -1:].is_contiguous()
