"""An edit is one operation: as hooks or as weights, cached or not, padded or not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.directions.direction import Direction
from mechsafety.edits.interventions import Ablate, Add, AffineAblate, Orthogonalise, baked, digest, edited
from mechsafety.models.chat import TokenBatch, pad_left
from mechsafety.models.forward import forward
from mechsafety.models.loading import generation_twin, load_model
from mechsafety.models.projection import orthonormal, project_out
from tests.architectures import save_architecture

ARCHITECTURES = ["llama", "llama-tied", "gpt2", "qwen2"]
SEQUENCES = [[5, 9, 12, 30, 7, 21, 40, 8], [6, 11, 33], [14, 15, 16, 17, 18]]


def direction(seed: int = 0, k: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(32, generator=generator) if k is None else torch.randn(k, 32, generator=generator)


def padded() -> TokenBatch:
    return pad_left(SEQUENCES, pad=0)


def logits(model: Any, batch: TokenBatch) -> Tensor:
    return forward(model.original_model, batch, logits=1).logits[:, -1].float()


def cached_logits(model: Any, batch: TokenBatch, first: int) -> Tensor:
    """The last logits, computed in two passes over a KV cache: ``first`` columns, then one at a time."""
    module, cache, out = model.original_model, None, None
    with torch.inference_mode():
        for start, end in [(0, first), *((i, i + 1) for i in range(first, batch.ids.shape[1]))]:
            out = module(
                input_ids=batch.ids[:, start:end],
                attention_mask=batch.mask[:, :end],
                position_ids=batch.positions[:, start:end],
                past_key_values=cache,
                use_cache=True,
            )
            cache = out.past_key_values
    assert out is not None
    return out.logits[:, -1].float()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("k", [None, 3])
def test_full_ablation_by_hooks_equals_weights(
    tiny_kept: Callable[..., Any], architecture: str, k: int | None
) -> None:
    model, batch, edit = tiny_kept(architecture), padded(), Ablate(direction(k=k))
    before = logits(model, batch)
    with edited(model, edit):
        hooked, hooked_cached = logits(model, batch), cached_logits(model, batch, 4)
    with baked(model, edit):
        weights, weights_cached = logits(model, batch), cached_logits(model, batch, 4)
        singly = torch.cat([logits(model, pad_left([s], pad=0)) for s in SEQUENCES])
    torch.testing.assert_close(hooked, weights, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(hooked_cached, weights_cached, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(hooked, hooked_cached, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(weights, singly, rtol=1e-4, atol=1e-4)
    # The control: the edit does something.
    assert (hooked - before).abs().max() > 0.05


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("writers", [("attn_out", "mlp_out"), ("embed", "attn_out", "mlp_out"), ("mlp_out",)])
@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_orthogonalised_weights_equal_their_hooks(
    tiny_kept: Callable[..., Any], architecture: str, writers: Any, alpha: float
) -> None:
    model, batch = tiny_kept(architecture), padded()
    edit = Orthogonalise(direction(), alpha=alpha, layers=(1, 2), writers=writers)
    with edited(model, edit):
        hooked = logits(model, batch)
    with baked(model, edit):
        weights = logits(model, batch)
    torch.testing.assert_close(hooked, weights, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_twin_and_bridge_compute_the_same_under_hooks(
    tiny_kept: Callable[..., Any], architecture: str
) -> None:
    model, batch, edit = tiny_kept(architecture), padded(), Ablate(direction())
    twin = generation_twin(model)
    assert twin is not None
    with edited(model, edit):
        on_bridge = logits(model, batch)
    with edited(model, edit, twin=twin):
        on_twin = forward(twin, batch, logits=1).logits[:, -1].float()
        untouched = logits(model, batch)
    torch.testing.assert_close(on_bridge, on_twin, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(untouched, logits(model, batch))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_of_the_direction_is_left(tiny_kept: Callable[..., Any], architecture: str) -> None:
    model, v = tiny_kept(architecture), direction()
    unit = v / v.norm()
    seen: dict[str, float] = {}

    def look(x: Tensor, hook: Any) -> Tensor:
        seen[hook.name] = float((x.float() @ unit).abs().max() / x.float().norm(dim=-1).max())
        return x

    names = ["blocks.3.hook_resid_post", "blocks.2.hook_resid_post"]
    with edited(model, Ablate(v)), model.hooks(fwd_hooks=[(n, look) for n in names]):
        logits(model, padded())
    with_edit = max(seen.values())
    with model.hooks(fwd_hooks=[(n, look) for n in names]):
        logits(model, padded())
    assert with_edit < 1e-5 < 1e-2 < max(seen.values())


@pytest.mark.parametrize("architecture", ["llama-tied", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_come_back_bit_for_bit(tiny_kept: Callable[..., Any], architecture: str, dtype: str) -> None:
    model = tiny_kept(architecture, dtype=dtype)
    before = {name: p.clone() for name, p in model.original_model.named_parameters()}
    embedding = model.embed.original_component.weight

    def fail_inside() -> None:
        with baked(model, Ablate(direction())):
            during = dict(model.original_model.named_parameters())
            assert any(not torch.equal(before[n], during[n]) for n in before)
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail_inside()
    after = dict(model.original_model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.embed.original_component.weight is embedding
    twin = generation_twin(model)
    assert twin is not None
    assert twin.get_input_embeddings().weight is embedding


def test_tied_unembedding_is_left_alone(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama-tied")
    table = model.embed.original_component.weight.clone()
    with baked(model, Ablate(direction())):
        assert torch.equal(model.unembed.original_component.weight, table)
        assert not torch.equal(model.embed.original_component.weight, table)


def test_bfloat16_projection_leaves_less_than_projecting_in_bfloat16() -> None:
    generator = torch.Generator().manual_seed(1)
    basis = orthonormal(direction())
    x = torch.randn(500, 32, generator=generator).bfloat16() + 20 * basis[0].bfloat16()
    ours = project_out(x, basis, 1.0)
    low = basis.bfloat16()
    naive = x - (x @ low.T) @ low
    residue = (ours.double() @ basis[0].double()).abs().mean()
    assert residue < 0.25 * (naive.double() @ basis[0].double()).abs().mean()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_projection_is_idempotent_and_leaves_the_rest(dtype: str) -> None:
    basis = orthonormal(direction(k=4))
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(2)).to(getattr(torch, dtype))
    once = project_out(x, basis, 1.0)
    tolerance = 1e-5 if dtype == "float32" else 3e-2
    torch.testing.assert_close(project_out(once, basis, 1.0), once, rtol=tolerance, atol=tolerance)
    half = project_out(x.float(), basis, 0.5)
    torch.testing.assert_close(half, (x.float() + project_out(x.float(), basis, 1.0)) / 2)


def test_orthonormal_spans_the_same_and_keeps_the_sign() -> None:
    rows = direction(k=3)
    basis = orthonormal(rows)
    torch.testing.assert_close(basis @ basis.T, torch.eye(3), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(project_out(rows, basis, 1.0), torch.zeros_like(rows), rtol=0, atol=1e-5)
    assert float(basis[0] @ rows[0]) > 0


POSITION_CASES = [("prompt", 6), ("last_prompt", 6), ("generated", 6), ("all", 6)]


def touched(model: Any, edit: Any, batch: TokenBatch, *, cuts: list[int], prompt: int) -> Tensor:
    """Which (row, column) an edit changed at block 1's input, over passes cut at ``cuts``."""
    changed: list[Tensor] = []
    state: dict[str, Tensor] = {}

    def before(x: Tensor, hook: Any) -> Tensor:
        state["x"] = x.clone()
        return x

    def after(x: Tensor, hook: Any) -> Tensor:
        changed.append((x != state["x"]).any(-1))
        return x

    cache = None
    with (
        torch.inference_mode(),
        model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", before)]),
        edited(model, edit, prompt_length=prompt),
        model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", after)]),
    ):
        for start, end in zip([0, *cuts], [*cuts, batch.ids.shape[1]], strict=True):
            out = model.original_model(
                input_ids=batch.ids[:, start:end],
                attention_mask=batch.mask[:, :end],
                position_ids=batch.positions[:, start:end],
                past_key_values=cache,
                use_cache=bool(cuts),
            )
            cache = out.past_key_values
    return torch.cat(changed, dim=1)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize(("positions", "prompt"), POSITION_CASES)
def test_positions_mean_the_same_cached_and_not(
    tiny_kept: Callable[..., Any], architecture: str, positions: Any, prompt: int
) -> None:
    model, batch = tiny_kept(architecture), padded()
    edit = Add(direction(), layer=1, coefficient=3.0, positions=positions)
    whole = touched(model, edit, batch, cuts=[], prompt=prompt)
    stepped = touched(model, edit, batch, cuts=[6, 7], prompt=prompt)
    in_parts = touched(model, edit, batch, cuts=[2, 5, 7], prompt=prompt)
    columns = torch.arange(batch.ids.shape[1])
    real = batch.mask.bool()
    expected = {
        "all": torch.ones_like(real),
        "prompt": real & (columns < prompt),
        "last_prompt": real & (columns == prompt - 1),
        "generated": real & (columns >= prompt),
    }[positions]
    assert torch.equal(whole, expected)
    assert torch.equal(stepped, expected)
    assert torch.equal(in_parts, expected)


def test_last_prompt_of_right_padded_rows_is_each_rows_own(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    left = padded()
    flipped = TokenBatch(rows=left.rows, ids=left.ids.clone(), mask=left.mask.flip(-1))
    edit = Add(direction(), layer=1, positions="last_prompt")
    got = touched(model, edit, flipped, cuts=[], prompt=8)
    assert got.nonzero().tolist() == [[0, 7], [1, 2], [2, 4]]


def test_receipt_counts_hooks_and_positions(tiny_kept: Callable[..., Any]) -> None:
    model, batch = tiny_kept("llama"), padded()
    with edited(model, Ablate(direction())) as coverage:
        logits(model, batch)
        logits(model, batch)
    assert coverage.summary() == {"hooks": 12, "fired": 24, "positions": 2 * batch.ids.numel()}
    with edited(model, Ablate(direction(), positions="last_prompt")) as coverage:
        logits(model, batch)
    assert coverage.summary()["positions"] == 3


def test_an_edit_that_touches_nothing_is_an_error(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    with pytest.raises(MechsafetyError, match="touched nothing"), edited(model, Ablate(direction())):
        pass
    with (
        pytest.raises(MechsafetyError, match="missed"),
        edited(model, Ablate(direction())),
        torch.inference_mode(),
    ):
        model(padded().ids, stop_at_layer=2, return_type=None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ablate(torch.zeros(32)), "zero"),
        (lambda: Ablate(torch.full((32,), float("nan"))), "NaN"),
        (lambda: Ablate(torch.ones(2, 32)), "dependent"),
        (lambda: Add(torch.ones(2, 32), layer=0), "one vector"),
        (lambda: Orthogonalise(direction(), writers=()), "none"),
    ],
)
def test_bad_edits_report_what_is_wrong(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(MechsafetyError, match=message):
        make()


def test_unknown_sites_and_positions_are_refused() -> None:
    # The tests' type checks speak first, so the constructor's own checks are called by name.
    from mechsafety.edits.values import SITES, _names, _require_position

    with pytest.raises(MechsafetyError, match="resid_mid is not one of resid_pre"):
        _names("resid_mid", SITES, "site")
    for position in ("last", -1, [-1, -2]):
        with pytest.raises(MechsafetyError, match=r"one of all, prompt, .* is last_prompt"):
            _require_position(position)


def test_vectors_of_numpy_and_lists_and_one_thing_in_the_place_of_several() -> None:
    vector = direction()
    for same in (vector.numpy(), vector.tolist(), vector.double()):
        assert Ablate(same) == Ablate(vector)
        assert Add(same, layer=2) == Add(vector, layer=2)
    assert Ablate(vector, layers=3, sites="attn_out") == Ablate(vector, layers=(3,), sites=("attn_out",))
    assert Ablate(vector, layers=range(1, 3)) == Ablate(vector, layers=[1, 2])
    for wrong in ("a", None, object(), [["a"]], 3.0):
        with pytest.raises(MechsafetyError, match="a Direction, a tensor, an array or a list of numbers"):
            Ablate(wrong)


def test_a_sum_acts_in_its_order(tiny: Callable[..., Any]) -> None:
    """Added and then ablated nothing is left of the direction; ablated and then added, what was added is."""
    model, vector = tiny("llama"), direction()
    add, ablate = Add(vector, layer=2, coefficient=5.0), Ablate(vector, layers=2, sites="resid_pre")
    ids, seen = torch.tensor([[5, 6, 7]]), []

    def read(edit: Any) -> float:
        found: dict[str, torch.Tensor] = {}
        with edited(model, edit), torch.no_grad():
            _, cache = model.run_with_cache(ids, names_filter=["blocks.2.hook_resid_pre"])
            found.update(cache)
        return float((found["blocks.2.hook_resid_pre"] @ (vector / vector.norm())).abs().max())

    seen = [read(edit) for edit in ([add, ablate], add + ablate, [ablate, add])]
    assert seen[0] == seen[1] < 1e-4
    assert seen[2] == pytest.approx(5.0 * float(vector.norm()), rel=1e-4)
    assert digest(add + ablate) != digest(ablate + add)


def test_parts_of_a_sum_act_at_their_own_positions(tiny_kept: Callable[..., Any]) -> None:
    """A sum at several positions does what its edits do one within the other."""
    model, vector = tiny_kept("llama"), direction()
    first, second = Add(vector, layer=1, positions="last_prompt"), Ablate(vector, layers=(2, 3))
    ids = torch.tensor([[5, 6, 7, 8]])

    def answer(*edits: Any) -> torch.Tensor:
        with ExitStack() as stack:
            for edit in edits:
                stack.enter_context(edited(model, edit))
            with torch.no_grad():
                return model.generate(
                    ids,
                    max_new_tokens=4,
                    do_sample=False,
                    stop_at_eos=False,
                    return_type="tokens",
                    verbose=False,
                )

    assert torch.equal(answer(first + second), answer(first, second))


def test_a_range_of_layers_takes_one_vector_or_one_for_each(tiny_kept: Callable[..., Any]) -> None:
    model, rows = tiny_kept("llama"), torch.stack([direction(), 2 * direction()])
    ids = torch.tensor([[5, 6, 7]])
    for several, single in (
        (Add(rows, layer=(1, 2)), [Add(rows[0], layer=1), Add(rows[1], layer=2)]),
        (Add(rows[0], layer=range(1, 3)), [Add(rows[0], layer=1), Add(rows[0], layer=2)]),
    ):
        logits = []
        for edit in (several, single):
            with edited(model, edit), torch.no_grad():
                logits.append(model(ids, return_type="logits"))
        torch.testing.assert_close(*logits, rtol=0, atol=0)
    with pytest.raises(MechsafetyError, match=r"one for each of its 3 layers, got shape \[2, 32\]"):
        Add(rows, layer=range(3))


def test_edits_for_another_model_are_refused(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    with pytest.raises(MechsafetyError, match="another model"), edited(model, Ablate(torch.ones(16))):
        pass
    with pytest.raises(MechsafetyError, match="layers"), edited(model, Add(direction(), layer=9)):
        pass


def test_only_equivalent_edits_can_be_baked(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    for edit in (Ablate(direction(), alpha=0.5), Ablate(direction(), layers=(1,)), Add(direction(), layer=1)):
        with pytest.raises(MechsafetyError, match="no weight form"), baked(model, edit):
            pass


def test_architectures_that_norm_after_the_map_are_refused_and_restored(
    tiny_kept: Callable[..., Any],
) -> None:
    model = tiny_kept("gemma2")
    before = {name: p.clone() for name, p in model.original_model.named_parameters()}
    with pytest.raises(MechsafetyError, match="not the hook edit"), baked(model, Ablate(direction())):
        pass
    after = dict(model.original_model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_digest_distinguishes_edits() -> None:
    a, b = Ablate(direction()), Ablate(direction(1))
    assert digest(a) == digest(Ablate(direction()))
    assert (
        len(
            {digest(a), digest(b), digest(Ablate(direction(), alpha=0.5)), digest(Orthogonalise(direction()))}
        )
        == 4
    )


# -- oblique, affine and norm-preserving edits ---------------------------------------------------------


def leace(seed: int = 0) -> Direction:
    generator = torch.Generator().manual_seed(seed)
    return Direction(
        vector=torch.randn(32, generator=generator),
        layer=1,
        position=-1,
        method="leace",
        covector=torch.randn(32, generator=generator),
    )


def applied(edit: Any, x: Tensor, *, site: str = "resid_pre", layer: int = 1) -> Tensor:
    target = next(t for t in edit.targets(4) if t.site == site and t.layer == layer)
    return target.apply(x, target.constant)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_oblique_ablation_takes_what_is_read_along_what_is_written(dtype: torch.dtype) -> None:
    found = leace()
    assert found.covector is not None
    x = torch.randn(5, 7, 32, generator=torch.Generator().manual_seed(2)).to(dtype)
    once = applied(Ablate(found), x)
    # Entries of 10 are rounded to multiples of 1/16 in bfloat16.
    tolerance = 1e-4 if dtype == torch.float32 else 0.13
    assert float((once.float() @ found.covector).abs().max()) < tolerance * float(found.covector.norm())
    torch.testing.assert_close(applied(Ablate(found), once), once, atol=tolerance, rtol=0)
    moved = (x.float() - once.float()).reshape(-1, 32)
    along = (moved @ found.unit)[:, None] * found.unit
    torch.testing.assert_close(moved, along, atol=tolerance, rtol=0)
    # The control: the orthogonal projection leaves the covector something to read.
    straight = applied(Ablate(found.vector), x)
    assert float((straight.float() @ found.covector).abs().max()) > 0.5
    with pytest.raises(MechsafetyError, match="does not read the direction"):
        Ablate(replace(found, covector=torch.zeros(32)))


def test_affine_ablation_puts_every_prompt_at_the_reference_and_leaves_the_rest() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, reference = torch.randn(2, 32, generator=generator), torch.randn(32, generator=generator)
    x = torch.randn(5, 7, 32, generator=generator)
    edit = AffineAblate(rows, reference=reference)
    out = applied(edit, x)
    basis = edit.basis
    torch.testing.assert_close(out @ basis.T, (reference @ basis.T).expand(5, 7, 2), atol=1e-5, rtol=0)
    off = torch.eye(32) - basis.T @ basis
    torch.testing.assert_close(out @ off, x @ off, atol=1e-5, rtol=0)
    torch.testing.assert_close(applied(edit, reference.expand(1, 1, 32)), reference.expand(1, 1, 32))
    # With nought as its reference it is the plain projection; with another it is not.
    plain = AffineAblate(rows, reference=torch.zeros(32))
    torch.testing.assert_close(applied(plain, x), applied(Ablate(rows), x), atol=1e-5, rtol=0)
    assert not torch.allclose(out, applied(plain, x), atol=0.1)
    # A coordinate says the same as a point.
    one = AffineAblate(rows[0], reference=float(reference @ rows[0] / rows[0].norm()))
    torch.testing.assert_close(applied(one, x), applied(AffineAblate(rows[0], reference=reference), x))


def test_affine_reference_a_layer() -> None:
    reference = torch.arange(5.0)[:, None].expand(5, 32)
    v = torch.ones(32)
    edit = AffineAblate(v, reference=reference, sites=("resid_pre", "resid_post"))
    for layer in range(4):
        out = applied(edit, torch.zeros(1, 1, 32), layer=layer)
        torch.testing.assert_close(out, reference[layer].expand(1, 1, 32))
    end = applied(edit, torch.zeros(1, 1, 32), site="resid_post", layer=3)
    torch.testing.assert_close(end, reference[4].expand(1, 1, 32))
    for wrong, said in (
        (AffineAblate(v, reference=torch.ones(3, 32)), "the reference has 3 rows"),
        (AffineAblate(v, reference=torch.ones(4, 32), sites=("resid_post",)), "no row for the last block"),
    ):
        with pytest.raises(MechsafetyError, match=said):
            wrong.targets(4)
    with pytest.raises(MechsafetyError, match="a number is a reference for one direction"):
        AffineAblate(torch.eye(32)[:2], reference=1.0)
    with pytest.raises(MechsafetyError, match=r"got shape \[31\]"):
        AffineAblate(v, reference=torch.ones(31))
    with pytest.raises(MechsafetyError, match="site of an affine edit attn_out is not one of"):
        AffineAblate(v, reference=0.0, sites=("attn_out",))


@pytest.mark.parametrize("architecture", ["llama-tied", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_norm_preserving_weights_keep_every_length_and_lose_the_direction(
    tiny_kept: Callable[..., Any], architecture: str, dtype: str
) -> None:
    model, v = tiny_kept(architecture, dtype=dtype), direction()
    edit = Orthogonalise(v, norm_preserving=True)

    def maps() -> list[Tensor]:
        found = []
        for block in model.blocks:
            for module in (block.attn.o, block.mlp.out):
                weight = module.original_component.weight.detach().float().clone()
                found.append(weight if architecture == "gpt2" else weight.T)
        return found

    before = maps()
    with baked(model, edit):
        during = maps()
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    unit = v / v.norm()
    for old, new in zip(before, during, strict=True):
        torch.testing.assert_close(new.norm(dim=-1), old.norm(dim=-1), rtol=tolerance, atol=0)
        assert float((new @ unit).abs().max()) < tolerance * float(old.norm(dim=-1).max())
        assert float((old @ unit).abs().max()) > 0.05
    # The control: without it lengths shrink.
    with baked(model, Orthogonalise(v)):
        assert float((maps()[0].norm(dim=-1) / before[0].norm(dim=-1)).min()) < 0.995
    for old, again in zip(before, maps(), strict=True):
        assert torch.equal(old, again)
    with pytest.raises(MechsafetyError, match="exists only as weights: use baked"), edited(model, edit):
        pass


@pytest.mark.parametrize("name", ["opt", "llama", "llama4"])
def test_positions_are_known_however_a_head_reaches_its_blocks(tmp_path: Path, name: str) -> None:
    """An edit of the last prompt token leaves the logits of earlier ones as they are."""
    model = load_model(str(save_architecture(tmp_path, name)), dtype="float32", device="cpu")
    ids = torch.tensor([[5, 9, 12, 30, 7, 21]])
    vector = 3 * torch.randn(32, generator=torch.Generator().manual_seed(3))
    add = Add(vector, layer=1, positions="last_prompt")
    with torch.inference_mode():
        before = model.original_model(input_ids=ids).logits
        with edited(model, add):
            after = model.original_model(input_ids=ids).logits
    torch.testing.assert_close(after[:, :-1], before[:, :-1])
    assert float((after[:, -1] - before[:, -1]).abs().max()) > 0.1
