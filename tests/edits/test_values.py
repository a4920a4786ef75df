"""Edits as values, and the theorems of the ones that are more than a projection."""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.directions.direction import Direction
from mechsafety.edits.interventions import (
    Ablate,
    Add,
    AffineAblate,
    Edit,
    Orthogonalise,
    baked,
    digest,
    edited,
    require_fits,
)
from mechsafety.models.chat import TokenBatch, pad_left
from mechsafety.models.forward import forward
from mechsafety.models.loading import load_model
from tests.conftest import save_tokenizer, tiny_config

SEQUENCES = [[5, 9, 12, 30, 7, 21, 40, 8], [6, 11, 33], [14, 15, 16, 17, 18]]
ARCHITECTURES = ["llama", "gpt2", "qwen2", "gemma2"]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def leace(seed: int = 0) -> Direction:
    return Direction(
        vector=noise(32, seed=seed),
        layer=1,
        position=-1,
        method="leace",
        covector=noise(32, seed=seed + 100) + noise(32, seed=seed),
    )


def applied(edit: Edit, x: Tensor) -> Tensor:
    target = edit.targets(4)[0]
    return target.apply(x, target.constant)


# -- values -------------------------------------------------------------------------------------------

MADE: dict[str, Callable[[], Edit]] = {
    "ablate": lambda: Ablate(noise(32)),
    "ablate a little less": lambda: Ablate(noise(32), alpha=0.9999999),
    "ablate, half": lambda: Ablate(noise(32), alpha=0.5),
    "ablate, a subspace": lambda: Ablate(noise(2, 32)),
    "oblique": lambda: Ablate(leace()),
    "affine": lambda: AffineAblate(noise(32), reference=1.0),
    "affine, elsewhere": lambda: AffineAblate(noise(32), reference=1.0000001),
    "affine, oblique": lambda: AffineAblate(leace(), reference=1.0),
    "add": lambda: Add(noise(32), layer=1),
    "add, a little more": lambda: Add(noise(32), layer=1, coefficient=1 + 1e-9),
    "add, another site": lambda: Add(noise(32), layer=1, site="mlp_out"),
    "orthogonalise": lambda: Orthogonalise(noise(32)),
    "orthogonalise, lengths kept": lambda: Orthogonalise(noise(32), norm_preserving=True),
}


def test_edits_are_equal_exactly_when_they_do_the_same() -> None:
    for name, make in MADE.items():
        assert make() == make(), name
        assert hash(make()) == hash(make()), name
        assert repr(make()) == make().describe(), name
    assert len({digest(make()) for make in MADE.values()}) == len(MADE)
    assert len({make() for make in MADE.values()}) == len(MADE)
    assert Ablate(noise(32)) != noise(32).tolist()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Ablate(noise(32), alpha=float("nan")), "alpha is nan; a finite number is needed"),
        (lambda: AffineAblate(noise(32), reference=float("inf")), "reference is inf"),
        (lambda: AffineAblate(noise(32), reference=0.0, alpha=float("inf")), "alpha is inf"),
        (lambda: AffineAblate(noise(32), reference=torch.full((32,), float("nan"))), "NaN"),
        (lambda: Add(noise(32), layer=0, coefficient=float("-inf")), "coefficient is -inf"),
        (lambda: Orthogonalise(noise(32), alpha=float("nan")), "alpha is nan"),
        (lambda: Ablate(noise(32), sites=("attn_out", "attn_out")), "named twice"),
        (lambda: Ablate(noise(32), layers=(1, 1)).targets(4), "layers 1, 1: one is named twice"),
        (lambda: Ablate(noise(32), layers=(4,)).targets(4), r"layers \[4\] of a model with layers 0 to 3"),
        (lambda: Ablate(noise(32), layers=()).targets(4), "layers none of a model with layers 0 to 3"),
        (lambda: Orthogonalise(noise(32), layers=(-1,)).targets(4), "layers 0 to 3"),
        (lambda: AffineAblate(noise(32), reference=0.0, layers=(7,)).targets(4), "layers 0 to 3"),
    ],
)
def test_wrong_numbers_layers_and_sites_are_refused(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(MechsafetyError, match=said):
        make()


def test_a_covector_reads_one_direction_only() -> None:
    class Plane:
        vector = noise(2, 32)
        covector = noise(32)

    class Shorter:
        vector = noise(32)
        covector = noise(31)

    for wrong in (Plane(), Shorter()):
        with pytest.raises(MechsafetyError, match="a covector reads one direction of its own length"):
            Ablate(wrong)  # type: ignore[arg-type]


def test_an_edit_that_does_not_fit_is_refused_before_anything_runs(
    tiny_kept: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_kept("llama")
    for make in MADE.values():
        edit = make()
        require_fits(model, edit, weights=isinstance(edit, Orthogonalise))
    for edit in (Ablate(noise(16)), Add(noise(16), layer=1), AffineAblate(noise(16), reference=0.0)):
        with pytest.raises(MechsafetyError, match=r"has 16 entries, .* 32: it was made for another model"):
            require_fits(model, edit)
    with pytest.raises(MechsafetyError, match="has 16 entries"), baked(model, Orthogonalise(noise(16))):
        pass
    with pytest.raises(MechsafetyError, match="no weight form"):
        require_fits(model, Ablate(leace()), weights=True)
    gone = ("blocks.2.hook_mlp_out", "blocks.2.mlp.hook_out")
    points = {k: v for k, v in model.hook_dict.items() if k not in gone}
    monkeypatch.setattr(type(model), "hook_dict", property(lambda _: points))
    said = (
        r"no hook point blocks.2.hook_mlp_out: the sites of block 2 of LlamaForCausalLM are "
        r"resid_pre, attn_out, resid_post$"
    )
    with pytest.raises(MechsafetyError, match=said), edited(model, Ablate(noise(32))):
        pass
    require_fits(model, Ablate(noise(32), sites=("attn_out",)))


# -- the same in every arrangement --------------------------------------------------------------------


def logits(model: Any, batch: TokenBatch) -> Tensor:
    return forward(model.original_model, batch, logits=1).logits[:, -1].float()


def stepped(model: Any, batch: TokenBatch, first: int) -> Tensor:
    """The last logits over a KV cache: ``first`` columns, then one at a time."""
    cache, out = None, None
    with torch.inference_mode():
        for start, end in [(0, first), *((i, i + 1) for i in range(first, batch.ids.shape[1]))]:
            out = model.original_model(
                input_ids=batch.ids[:, start:end],
                attention_mask=batch.mask[:, :end],
                position_ids=batch.positions[:, start:end],
                past_key_values=cache,
                use_cache=True,
            )
            cache = out.past_key_values
    assert out is not None
    return out.logits[:, -1].float()


HOOKED: dict[str, Callable[[], Edit]] = {
    "oblique": lambda: Ablate(leace(), layers=(1, 3), sites=("attn_out", "mlp_out")),
    "affine": lambda: AffineAblate(noise(2, 32), reference=3 * noise(32, seed=1), positions="prompt"),
    "affine a layer": lambda: AffineAblate(leace(), reference=noise(5, 32), sites=("resid_post",), alpha=0.7),
    "affine generated": lambda: AffineAblate(noise(32), reference=4.0, layers=(2,), positions="generated"),
    "add": lambda: Add(noise(32), layer=1, site="attn_out", positions="last_prompt"),
    "add generated": lambda: Add(noise(32), layer=2, site="mlp_out", coefficient=-2.0, positions="generated"),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", HOOKED)
def test_edits_are_the_same_padded_or_not_cached_or_not(
    tiny_kept: Callable[..., Any], architecture: str, name: str
) -> None:
    model, batch, edit = tiny_kept(architecture), pad_left(SEQUENCES, pad=0), HOOKED[name]()
    columns = batch.ids.shape[1]
    with edited(model, edit, prompt_length=columns - 2):
        whole, in_steps = logits(model, batch), stepped(model, batch, columns - 2)
    singly = []
    for sequence in SEQUENCES:
        with edited(model, edit, prompt_length=len(sequence) - 2):
            singly.append(logits(model, pad_left([sequence], pad=0)))
    torch.testing.assert_close(whole, in_steps, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole, torch.cat(singly), rtol=1e-4, atol=1e-4)
    # The control: the edit does something, and the prompt's length matters where positions name it.
    plain = logits(model, batch)
    assert (whole - plain).abs().max() > 0.01
    with edited(model, edit, prompt_length=columns):
        otherwise = logits(model, batch)
    assert torch.equal(otherwise, whole) == (edit.positions == "all")


# -- what the maps do ---------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adding_to_what_the_mlp_writes_is_adding_to_the_next_blocks_input(
    tiny_kept: Callable[..., Any], architecture: str
) -> None:
    model, batch = tiny_kept(architecture), pad_left(SEQUENCES, pad=0)

    def under(layer: int, site: Any) -> Tensor:
        with edited(model, Add(noise(32), layer=layer, site=site, coefficient=2.0)):
            return logits(model, batch)

    torch.testing.assert_close(under(1, "mlp_out"), under(2, "resid_pre"), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(under(1, "resid_post"), under(2, "resid_pre"), rtol=1e-4, atol=1e-4)
    # The control: what attention writes is read by the MLP first.
    assert (under(1, "attn_out") - under(2, "resid_pre")).abs().max() > 0.01


def seen(model: Any, edit: Edit | None, hook: str) -> Tensor:
    """The stream at ``hook``, after the edit has acted there."""
    found: list[Tensor] = []

    def look(x: Tensor, hook: Any) -> Tensor:
        found.append(x.detach().float().clone())
        return x

    batch = pad_left(SEQUENCES, pad=0)
    if edit is None:
        with model.hooks(fwd_hooks=[(hook, look)]):
            logits(model, batch)
    else:
        with edited(model, edit), model.hooks(fwd_hooks=[(hook, look)]):
            logits(model, batch)
    return found[0][batch.mask.bool()]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("oblique", [False, True])
def test_affine_edits_put_the_stream_of_a_model_at_the_reference(
    tiny_kept: Callable[..., Any], architecture: str, dtype: str, oblique: bool
) -> None:
    model, source = tiny_kept(architecture, dtype=dtype), leace()
    assert source.covector is not None
    read = source.covector / (source.covector @ source.unit) if oblique else source.unit
    hook = "blocks.2.hook_resid_pre"
    edit = AffineAblate(source if oblique else source.vector, reference=3.0, layers=(2,))
    before, after = seen(model, None, hook), seen(model, edit, hook)
    tolerance = 1e-4 if dtype == "float32" else 2**-7 * float(after.norm(dim=-1).max() * read.norm())
    assert float((after @ read - 3.0).abs().max()) < tolerance
    moved = after - before
    off = moved - (moved @ source.unit)[:, None] * source.unit
    assert float(off.abs().max()) < tolerance
    # The controls: unedited prompts lie elsewhere, and not all in one place.
    spread = before @ read
    assert float((spread - 3.0).abs().max()) > 10 * tolerance if dtype == "float32" else True
    assert float(spread.std()) > 0.05


def test_an_oblique_affine_edit_is_idempotent_and_leaves_its_reference() -> None:
    source, reference, x = leace(), noise(32, seed=5), noise(4, 6, 32, seed=6)
    assert source.covector is not None
    edit = AffineAblate(source, reference=reference)
    once = applied(edit, x)
    torch.testing.assert_close(applied(edit, once), once, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        applied(edit, reference.expand(1, 1, 32)), reference.expand(1, 1, 32), rtol=0, atol=1e-4
    )
    torch.testing.assert_close(
        once @ source.covector, (reference @ source.covector).expand(4, 6), rtol=1e-3, atol=1e-3
    )
    # A coordinate says the same as a point, and it is the covector that reads it.
    read = source.covector / (source.covector @ source.unit)
    same = AffineAblate(source, reference=float(reference @ read))
    torch.testing.assert_close(applied(same, x), once, rtol=0, atol=1e-4)
    # The controls: the direction's own coordinate is another number, the orthogonal edit another map.
    other = AffineAblate(source, reference=float(reference @ source.unit))
    assert (applied(other, x) - once).abs().max() > 0.1
    assert (applied(AffineAblate(source.vector, reference=reference), x) - once).abs().max() > 0.1
    # With nought as its reference it is the plain oblique projection.
    nought = AffineAblate(source, reference=0.0)
    torch.testing.assert_close(applied(nought, x), applied(Ablate(source), x), rtol=0, atol=1e-4)


# -- norm-preserving weights --------------------------------------------------------------------------


def columns(weight: Tensor) -> Tensor:
    """What each input of a torch.nn.Linear writes, a row an input."""
    return weight.detach().float().T.clone()


def test_norm_preserving_formula_and_its_degenerate_columns(tiny: Callable[..., Any]) -> None:
    model, v = tiny("llama"), noise(32)
    unit = v / v.norm()
    weight = model.blocks[1].mlp.out.original_component.weight
    with torch.no_grad():
        weight[:, 0] = 0.0
        weight[:, 1] = 2 * v
    saved, old = weight.clone(), columns(weight)
    for alpha in (1.0, 0.5):
        with baked(model, Orthogonalise(v, alpha=alpha, norm_preserving=True)):
            new = columns(weight)
        assert torch.equal(weight, saved)
        turned = old - alpha * (old @ unit)[:, None] * unit
        expected = turned[2:] * (old[2:].norm(dim=-1) / turned[2:].norm(dim=-1))[:, None]
        torch.testing.assert_close(new[2:], expected, rtol=1e-4, atol=1e-5)
        assert not new[0].any()
        torch.testing.assert_close(new[1], torch.zeros(32) if alpha == 1 else old[1], rtol=1e-4, atol=1e-4)


def test_norm_preserving_also_keeps_embeddings_and_biases(tiny_kept: Callable[..., Any]) -> None:
    model, v = tiny_kept("gpt2"), noise(32)
    unit = v / v.norm()

    def written() -> dict[str, Tensor]:
        block = model.blocks[0]
        return {
            "embedding": model.embed.original_component.weight.detach().clone(),
            "positions": model.pos_embed.original_component.weight.detach().clone(),
            "bias": block.mlp.out.original_component.bias.detach().clone()[None],
            "map": block.attn.o.original_component.weight.detach().clone(),
        }

    before = written()
    with baked(model, Orthogonalise(v, norm_preserving=True)):
        during = written()
    with baked(model, Orthogonalise(v)):
        shorter = written()
    for name, old in before.items():
        torch.testing.assert_close(during[name].norm(dim=-1), old.norm(dim=-1), rtol=1e-4, atol=1e-6)
        assert (during[name] @ unit).abs().max() < 1e-4, name
        # The controls: there was something to take away, and the plain edit shortens.
        assert (old @ unit).abs().max() > 0.01, name
        assert (shorter[name].norm(dim=-1) < old.norm(dim=-1) - 1e-6).any(), name
    assert all(torch.equal(a, b) for a, b in zip(before.values(), written().values(), strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("writers", [("attn_out",), ("mlp_out",), ("attn_out", "mlp_out")])
def test_weights_are_refused_where_a_norm_follows_the_map(
    tiny_kept: Callable[..., Any], dtype: str, writers: Any
) -> None:
    model = tiny_kept("gemma2", dtype=dtype)
    before = {name: p.clone() for name, p in model.original_model.named_parameters()}
    for norms in (False, True):
        edit = Orthogonalise(noise(32), writers=writers, norm_preserving=norms)
        with (
            pytest.raises(MechsafetyError, match=r"not the hook edit .* a norm lies between"),
            baked(model, edit),
        ):
            pass
    after = dict(model.original_model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    # What Gemma's embedding writes is only multiplied: that edit exists.
    with baked(model, Orthogonalise(noise(32), writers=("embed",))):
        pass


def test_a_deep_model_in_bfloat16_can_be_baked_though_its_rounding_adds_up(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    config = tiny_config("llama")
    config.num_hidden_layers = 24
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    model, batch = load_model(str(tmp_path), dtype="bfloat16", device="cpu"), pad_left(SEQUENCES, pad=0)
    edit = Ablate(noise(32))
    with edited(model, edit):
        hooked = logits(model, batch)
    with baked(model, edit):
        weights = logits(model, batch)
    # So far apart are two computations of the same thing; logits cannot tell it from another one.
    assert float((hooked - weights).abs().max() / hooked.std()) > 0.15
    whole = load_model(str(tmp_path), dtype="float32", device="cpu")
    with edited(whole, edit):
        hooked = logits(whole, batch)
    with baked(whole, edit):
        torch.testing.assert_close(logits(whole, batch), hooked, rtol=1e-3, atol=1e-3)


def test_norm_preserving_is_refused_where_a_norm_follows_the_map(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("gemma2")
    before = {name: p.clone() for name, p in model.original_model.named_parameters()}
    with (
        pytest.raises(MechsafetyError, match=r"not the hook edit .* without norm_preserving"),
        baked(model, Orthogonalise(noise(32), norm_preserving=True)),
    ):
        pass
    after = dict(model.original_model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_norm_preserving_weights_come_back_after_an_error(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama-tied", dtype="bfloat16")
    before = {name: p.clone() for name, p in model.original_model.named_parameters()}

    def fail_inside() -> None:
        with baked(model, Orthogonalise(noise(32), norm_preserving=True)):
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail_inside()
    after = dict(model.original_model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_edits_add_up_in_their_order_from_nothing() -> None:
    one, two = Ablate(torch.ones(8)), Add(torch.ones(8), layer=1)
    assert sum([one, two]) == one + two
    assert sum([two, one]) == two + one != one + two
    assert sum([one]) == one
    assert sum([one, two], one) == one + one + two
    with pytest.raises(MechsafetyError, match="is no edit"):
        1 + one  # type: ignore[operator]
    with pytest.raises(MechsafetyError, match="is no edit"):
        operator.add([one], two)  # type: ignore[operator]
