"""An ablation everywhere leaves nothing of a direction for any norm to read, whatever writes to the stream."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mechsafety as ms
from mechsafety.edits import completeness
from mechsafety.edits.completeness import written_past_hooks
from mechsafety.edits.interventions import edited
from mechsafety.edits.places import written_places
from tests.architectures import ARCHITECTURES, SITELESS, UNFAITHFUL, kinds_first
from tests.kept_models import kept, kept_folder

COMPLETE = [n for n in ARCHITECTURES if n not in (*SITELESS, *UNFAITHFUL)]
PAST_HOOKS = ("gemma4",)
BRANCHES = {
    "qwen3-next": {"resid_pre, linear_attn, mlp_out": [0, 1, 2], "resid_pre, attn_out, mlp_out": [3]},
    "qwen3_5": {"resid_pre, linear_attn, mlp_out": [0, 1, 2], "resid_pre, attn_out, mlp_out": [3]},
    "lfm2": {"resid_pre, conv, mlp_out": [0, 2], "resid_pre, attn_out, mlp_out": [1, 3]},
    "granite-hybrid": {
        "resid_pre, mixer, shared_mlp, moe": [0, 2],
        "resid_pre, attn_out, shared_mlp, moe": [1, 3],
    },
    "falcon-h1": {"resid_pre, attn_out, mamba, mlp_out": [0, 1, 2, 3]},
    "nemotron-h": {"resid_pre, mixer": [0, 1, 2, 3]},
}
"""Where an ablation by default acts, by block."""
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(9))
IDS = torch.tensor([[5, 9, 12, 30, 7, 21, 40, 8, 11, 17]])


def read_by_norms(model: Any, edit: Any | None) -> dict[str, float]:
    """The component along VECTOR at what the second norm of each block and the last norm read."""
    n = model.cfg.n_layers
    names = [f"blocks.{layer}.hook_resid_mid" for layer in range(n)] + [f"blocks.{n - 1}.hook_resid_post"]
    return along(model, edit, names)


def along(model: Any, edit: Any | None, names: list[str]) -> dict[str, float]:
    """The component along VECTOR at hook points, as ``edit`` leaves them."""
    seen: dict[str, float] = {}

    def keep(name: str) -> Any:
        def call(x: torch.Tensor, hook: Any) -> torch.Tensor:
            seen[name] = float((x.float() @ (VECTOR / VECTOR.norm())).norm())
            return x

        return call

    def run() -> None:
        with model.hooks(fwd_hooks=[(name, keep(name)) for name in names if name in model.hook_dict]):
            model.original_model(input_ids=IDS)

    with torch.inference_mode():
        if edit is None:
            run()
        else:
            with edited(model, edit):
                run()
    return seen


@pytest.mark.parametrize("name", kinds_first(COMPLETE))
def test_nothing_is_left_for_a_norm_to_read(name: str) -> None:
    model = kept(name)
    before, after = read_by_norms(model, None), read_by_norms(model, ms.Ablate(VECTOR))
    assert max(before.values()) > 0.1
    assert all(after[hook] <= 1e-4 * max(1.0, before[hook]) for hook in before)
    assert bool(written_past_hooks(model)) == (name in PAST_HOOKS)
    places = [place for block in written_places(model) for place in block]
    bare, edited_out = along(model, None, places), along(model, ms.Ablate(VECTOR), places)
    assert min(bare.values()) > 1e-3  # the control: every place writes some of it
    assert all(edited_out[place] <= 1e-4 * max(1.0, bare[place]) for place in places)


@pytest.mark.parametrize("name", kinds_first(BRANCHES))
def test_the_receipt_names_the_sites_of_each_block(name: str) -> None:
    model = kept(name)
    with edited(model, ms.Ablate(VECTOR)) as receipt, torch.inference_mode():
        model.original_model(input_ids=IDS)
    assert receipt.sites() == BRANCHES[name]
    assert receipt.summary().get("sites", BRANCHES[name]) == BRANCHES[name]


@pytest.mark.parametrize("name", kinds_first(n for n in BRANCHES if n != "nemotron-h"))
def test_control_without_the_mixers_some_is_left(name: str) -> None:
    model = kept(name)
    assert max(read_by_norms(model, ms.Ablate(VECTOR, sites=("resid_pre", "mlp_out"))).values()) > 0.1


def test_an_addition_acts_once_where_a_block_has_two_mixers() -> None:
    model = kept("falcon-h1")
    with edited(model, ms.Add(VECTOR, layer=1, site="attn_out")) as receipt, torch.inference_mode():
        model.original_model(input_ids=IDS)
    assert list(receipt.fired) == ["blocks.1.hook_attn_out"]


def test_a_site_that_a_block_lacks_is_refused_by_name() -> None:
    with (
        pytest.raises(ms.MechsafetyError, match=r"sites of block 0 .* are resid_pre, attn_out, resid_post"),
        edited(kept("mamba"), ms.Ablate(VECTOR, sites=("mlp_out",))),
    ):
        pass
    with (
        pytest.raises(ms.MechsafetyError, match="no hook point"),
        edited(kept("recurrent-gemma"), ms.Ablate(VECTOR)),
    ):
        pass


@pytest.mark.parametrize("name", PAST_HOOKS)
def test_control_the_three_sites_alone_leave_some(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = kept(name)
    monkeypatch.setattr("mechsafety.edits.interventions.written_past_hooks", lambda _: ())
    assert max(read_by_norms(model, ms.Ablate(VECTOR)).values()) > 0.1


def test_what_can_not_be_reached_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ms.load_model(str(kept_folder("gemma4")), dtype="float32", device="cpu")
    monkeypatch.setattr(completeness, "with_places", lambda targets, _: list(targets))
    with pytest.raises(ms.MechsafetyError, match="past every hook point"), edited(model, ms.Ablate(VECTOR)):
        pass
    with edited(model, ms.Ablate(VECTOR, layers=(1, 2))), torch.inference_mode():
        model.original_model(input_ids=IDS)  # a partial edit promises nothing


@pytest.mark.parametrize("name", [*PAST_HOOKS, "llama"])
def test_a_partial_edit_reports_what_it_leaves(name: str) -> None:
    model = kept(name)
    whole, partial, nothing = ms.Ablate(VECTOR), ms.Ablate(VECTOR, layers=(1,)), ms.Ablate(VECTOR, alpha=0.0)
    receipts = {}
    for edit in (whole, partial):
        with edited(model, edit) as receipts[edit], torch.inference_mode():
            model.original_model(input_ids=IDS)
    assert receipts[whole].past_hooks == ()
    past = receipts[partial].past_hooks
    assert bool(past) == (name in PAST_HOOKS)
    assert all(".1." in hook for hook in past)
    assert receipts[partial].summary().get("past_hooks", []) == list(past)
    left = ms.anatomy.component_left(model, partial)
    assert left["blocks.0.hook_resid_post"] == pytest.approx(1)
    assert max(ms.anatomy.component_left(model, nothing).values()) == pytest.approx(1)
    assert (left["blocks.1.hook_resid_post"] < 1e-4) == (name not in PAST_HOOKS)
    assert all(left[hook] > 1e-3 for hook in past)


def test_a_model_is_measured_once_however_many_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ms.load_model(str(kept_folder("gemma4")), dtype="float32", device="cpu")
    measured: list[Any] = []
    left = completeness._left
    monkeypatch.setattr(completeness, "_left", lambda m, places: measured.append(places) or left(m, places))
    for edit in (ms.Ablate(VECTOR), ms.Ablate(VECTOR), ms.Ablate(VECTOR, layers=(1,))):
        with edited(model, edit), torch.inference_mode():
            model.original_model(input_ids=IDS)
    assert len(measured) == 2  # with the sites alone, and with the places that these leave
    assert measured[0] == () != measured[1]


def test_half_precision_adds_no_place() -> None:
    for name in ("llama", "mixtral", "gemma2"):
        model = kept(name, dtype="bfloat16")
        assert written_past_hooks(model) == ()
