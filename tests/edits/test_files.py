"""Edits come back from files as they were, and only for the model they were made for."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from mechsafety.core.errors import MechsafetyError
from mechsafety.directions.activations import residual_stream
from mechsafety.directions.direction import Direction, find_directions
from mechsafety.edits.expressions import parse_edit
from mechsafety.edits.files import is_edit_file, load_edit, save_edit
from mechsafety.edits.interventions import Ablate, Add, AffineAblate, Edit, Orthogonalise, digest
from tests.prompt_sets import small_prompts


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def oblique() -> Direction:
    return Direction(vector=noise(32), layer=1, position=-1, method="leace", covector=noise(32, seed=1))


EDITS: dict[str, Callable[[], Edit]] = {
    "one direction": lambda: Ablate(noise(32)),
    "subspace": lambda: Ablate(
        noise(3, 32), alpha=0.5, layers=(1, 2), sites=("attn_out",), positions="prompt"
    ),
    "oblique": lambda: Ablate(oblique(), positions="generated"),
    "affine": lambda: AffineAblate(noise(2, 32), reference=noise(5, 32), sites=("resid_pre", "resid_post")),
    "affine, a number": lambda: AffineAblate(noise(32), reference=-1.25, layers=(2,)),
    "add": lambda: Add(noise(32), layer=2, coefficient=-1.5, positions="last_prompt"),
    "orthogonalise": lambda: Orthogonalise(noise(32), layers=(1, 3), writers=("mlp_out",)),
    "norm-preserving": lambda: Orthogonalise(noise(32), norm_preserving=True),
}


@pytest.mark.parametrize("name", EDITS)
def test_every_edit_comes_back_bit_for_bit(tiny_kept: Callable[..., Any], tmp_path: Path, name: str) -> None:
    model, edit, path = tiny_kept("llama"), EDITS[name](), tmp_path / "e.safetensors"
    save_edit(edit, path, model=model)
    back = load_edit(path, model=model)
    assert (type(back), back.describe(), digest(back)) == (type(edit), edit.describe(), digest(edit))
    assert back.positions == edit.positions
    for a, b in zip(edit.tensors(), back.tensors(), strict=True):
        assert torch.equal(a, b)
    assert is_edit_file(path)
    assert digest(Ablate(noise(32, seed=9))) != digest(edit)


def test_an_edit_made_for_another_model_is_refused(tiny: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    save_edit(Ablate(noise(32)), path, model=tiny("llama"))
    with pytest.raises(MechsafetyError, match="whose weights differ from"):
        load_edit(path, model=tiny("llama", seed=1))
    carried = load_edit(path, model=tiny("llama", seed=1), allow_other_weights=True)
    assert digest(carried) == digest(Ablate(noise(32)))
    model = tiny("llama")
    model.cfg.n_layers = 3
    with pytest.raises(MechsafetyError, match=r"\(4 layers, d_model 32\); .* has 3 layers and d_model 32"):
        load_edit(path, model=model, allow_other_weights=True)


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """The file again, with its record or tensors changed."""
    with safe_open(path, framework="pt") as stored:
        facts = json.loads(stored.metadata()["mechsafety_edit"])
        tensors = {k: stored.get_tensor(k) for k in stored.keys()}  # noqa: SIM118
    change(facts, tensors)
    save_file(tensors, path, metadata={"mechsafety_edit": json.dumps(facts)})
    return path


def test_hooks_a_model_lacks_and_changed_contents_are_refused(
    tiny_kept: Callable[..., Any], tmp_path: Path
) -> None:
    model, path = tiny_kept("llama"), tmp_path / "e.safetensors"

    def fresh() -> Path:
        save_edit(Ablate(noise(32)), path, model=model)
        return path

    def hooks(facts: dict[str, Any], _: Any) -> None:
        facts["model"]["hooks"] = ["blocks.0.hook_elsewhere"]

    with pytest.raises(MechsafetyError, match=r"acts at blocks.0.hook_elsewhere, a hook point that"):
        load_edit(rewritten(fresh(), hooks), model=model)
    with pytest.raises(MechsafetyError, match="does not match its hash"):
        load_edit(rewritten(fresh(), lambda _, t: t.update(basis=-t["basis"])))
    with pytest.raises(MechsafetyError, match="does not match its hash"):
        load_edit(rewritten(fresh(), lambda f, _: f["parameters"].update(alpha=0.5)))
    with pytest.raises(MechsafetyError, match="has format 2; this version reads format 1"):
        load_edit(rewritten(fresh(), lambda f, _: f.update(format=2)))
    changes: tuple[Callable[[dict[str, Any], dict[str, Any]], Any], ...] = (
        lambda f, _: f.update(kind="exec"),
        lambda f, _: f["parameters"].update(surprise=1),
        lambda f, _: f.pop("model"),
        lambda _, t: t.update(other=t.pop("basis")),
    )
    for change in changes:
        with pytest.raises(MechsafetyError, match="or is damaged"):
            load_edit(rewritten(fresh(), change))


def test_other_files_are_refused(tiny_kept: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(MechsafetyError, match="does not exist"):
        load_edit(tmp_path / "none.safetensors")
    with pytest.raises(MechsafetyError, match=r"must end in \.safetensors"):
        load_edit(tmp_path / "edit.pt")
    with pytest.raises(MechsafetyError, match=r"must end in \.safetensors"):
        save_edit(Ablate(noise(32)), tmp_path / "edit.pt", model=tiny_kept("llama"))
    with pytest.raises(MechsafetyError, match="no' does not exist"):
        save_edit(Ablate(noise(32)), tmp_path / "no" / "e.safetensors", model=tiny_kept("llama"))
    (tmp_path / "text.safetensors").write_text("no tensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name in ("text", "other"):
        with pytest.raises(MechsafetyError, match="holds no edit that mechsafety saved"):
            load_edit(tmp_path / f"{name}.safetensors")
        assert not is_edit_file(tmp_path / f"{name}.safetensors")


# -- expressions --------------------------------------------------------------------------------------


@pytest.fixture
def stored(tiny_kept: Callable[..., Any], tmp_path: Path) -> tuple[Any, Path, Any]:
    model = tiny_kept("llama")
    found = find_directions(residual_stream(model, small_prompts().fit, positions=(-2, -1)), resamples=1)
    found.save(tmp_path / "d.safetensors")
    return model, tmp_path / "d.safetensors", found


def test_expressions_are_the_edits_they_name(stored: tuple[Any, Path, Any]) -> None:
    model, path, found = stored
    at = found.at(layer=2)
    harmless = float(found.thresholds[1, 2] - found.gaps[1, 2] / 2)
    for text, expected in (
        ("ablate({d}, layer=2)", Ablate(at)),
        ("ablate({d}, layer=2, position=-2)", Ablate(found.at(layer=2, position=-2))),
        (
            "Ablate( {d} , layer=2, alpha=0.5, layers=0-1+3, sites=attn_out+mlp_out, positions=generated )",
            Ablate(at, alpha=0.5, layers=(0, 1, 3), sites=("attn_out", "mlp_out"), positions="generated"),
        ),
        ("ablate({d}, layer=2, layers=1,3)", Ablate(at, layers=(1, 3))),
        ("add({d}, layer=2, coefficient=-1)", Add(at.vector, layer=2, coefficient=-1.0)),
        ("affine({d}, layer=2)", AffineAblate(at.vector, reference=harmless, layers=(2,))),
        (
            "orthogonalise({d}, layer=2, writers=mlp_out, norm_preserving=true)",
            Orthogonalise(at, writers=("mlp_out",), norm_preserving=True),
        ),
        ("ablate(random, seed=3)", Ablate(noise(32, seed=3))),
    ):
        found_edit = parse_edit(text.format(d=path), model)
        assert found_edit.describe() == expected.describe()
        assert digest(found_edit) == digest(expected)
    saved = path.parent / "e.safetensors"
    save_edit(Ablate(at), saved, model=model)
    assert digest(parse_edit(str(saved), model)) == digest(Ablate(at))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("remove(random)", "kind 'remove' is not one of ablate, affine, add, orthogonalise, saved"),
        ("ablate(random, strength=2)", "'strength' is not an option of ablate: layer, position"),
        ("ablate(random, alpha=much)", "alpha=much is not a number"),
        ("ablate(random, alpha=nan)", "alpha=nan is not a number"),
        ("ablate(random, alpha=1, alpha=2)", "'alpha' is given twice"),
        ("ablate(random, sites=attn)", "sites=attn is not made of resid_pre, attn_out, mlp_out, resid_post"),
        ("ablate(random, layers=3-9)", "layers=3-9 is not within this model's layers, 0 to 3"),
        ("ablate(random, layers=3-1)", "is not layers such as 3, 3+7 or 10-20"),
        (
            "ablate(random, positions=first)",
            "positions=first is not one of all, prompt, last_prompt, generated",
        ),
        ("ablate(layer=2)", "the first argument is a directions file or 'random'"),
        ("ablate({d})", "an edit needs layer=L, 0 to 4"),
        ("ablate({d}, layer=7)", "layer=7 is not a layer of this model, 0 to 4"),
        ("ablate({d}, layer=2, position=-9)", "no direction at position -9"),
        ("affine(random)", "needs the class means that a directions file holds"),
        ("orthogonalise(random, norm_preserving=perhaps)", "norm_preserving=perhaps is not true or false"),
        ("ablate(nowhere.safetensors, layer=2)", "does not exist"),
        ("nowhere.safetensors", "does not exist"),
        ("strongly", "is neither a .safetensors file nor an expression"),
        ("__import__('os')", "kind '__import__' is not one of"),
    ],
)
def test_wrong_words_are_named(stored: tuple[Any, Path, Any], text: str, said: str) -> None:
    with pytest.raises(MechsafetyError) as caught:
        parse_edit(text.format(d=stored[1]), stored[0])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_directions_of_other_weights_need_a_word(
    stored: tuple[Any, Path, Any], tiny_kept: Callable[..., Any]
) -> None:
    _, path, found = stored
    other = tiny_kept("llama", seed=1)
    with pytest.raises(MechsafetyError, match="to use them all the same add any_weights=true"):
        parse_edit(f"ablate({path}, layer=2)", other)
    carried = parse_edit(f"ablate({path}, layer=2, any_weights=true)", other)
    assert digest(carried) == digest(Ablate(found.at(layer=2)))


@given(text=st.one_of(st.text(max_size=60), st.from_regex(r"(ablate|add|affine)\([a-z0-9=,+. -]{0,40}\)")))
def test_any_other_text_is_one_clear_error(text: str) -> None:
    class Shape:
        n_layers, d_model, model_name = 4, 32, "x"

    class Model:
        cfg = Shape()

    with contextlib.suppress(MechsafetyError):
        assert parse_edit(text, Model()).describe()  # type: ignore[arg-type]


# -- damaged and strange files ------------------------------------------------------------------------


def test_an_oblique_affine_edit_and_an_added_site_come_back(
    tiny_kept: Callable[..., Any], tmp_path: Path
) -> None:
    model, path = tiny_kept("gpt2"), tmp_path / "e.safetensors"
    for edit in (
        AffineAblate(oblique(), reference=noise(5, 32, seed=4), sites=("resid_post",), alpha=0.123456789),
        Add(noise(32), layer=2, site="attn_out"),
    ):
        save_edit(edit, path, model=model)
        assert load_edit(str(path), model=model) == edit
        assert load_edit(path) != Ablate(noise(32))


def test_a_file_that_cannot_be_written_is_one_clear_error(
    tiny_kept: Callable[..., Any], tmp_path: Path
) -> None:
    model = tiny_kept("llama")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(MechsafetyError, match="is a folder: name a file"):
        save_edit(Ablate(noise(32)), tmp_path / "folder.safetensors", model=model)
    with pytest.raises(MechsafetyError, match=r"cannot write .*File name too long"):
        save_edit(Ablate(noise(32)), tmp_path / ("a" * 300 + ".safetensors"), model=model)
    with pytest.raises(MechsafetyError, match="it was made for another model"):
        save_edit(Ablate(noise(16)), tmp_path / "e.safetensors", model=model)
    with pytest.raises(MechsafetyError, match="layers 0 to 3"):
        save_edit(
            Orthogonalise(noise(32), layers=(9,), norm_preserving=True),
            tmp_path / "e.safetensors",
            model=model,
        )
    assert not (tmp_path / "e.safetensors").exists()


@pytest.mark.parametrize("record", ["[]", "null", '"text"', "{}", "[" * 5000, '{"format": 1}', "\ud7ff"])
def test_records_that_are_none_are_refused(tmp_path: Path, record: str) -> None:
    path = tmp_path / "e.safetensors"
    save_file({"basis": noise(1, 32)}, path, metadata={"mechsafety_edit": record})
    with pytest.raises(MechsafetyError, match="holds no edit that mechsafety saved, or is damaged"):
        load_edit(path)


@pytest.mark.parametrize("shape", [(), (0,), (2, 3, 4), (1, 0), (40, 32)])
@pytest.mark.parametrize("kind", ["one direction", "affine", "oblique", "add"])
def test_tensors_of_a_wrong_shape_are_refused(
    tiny_kept: Callable[..., Any], tmp_path: Path, shape: tuple[int, ...], kind: str
) -> None:
    path = tmp_path / "e.safetensors"
    for name in ("basis", "vector", "target", "read"):
        save_edit(EDITS[kind](), path, model=tiny_kept("llama"))
        if name in {k for k in safe_open(path, framework="pt").keys()}:  # noqa: SIM118, C416
            with pytest.raises(MechsafetyError):
                load_edit(rewritten(path, lambda _, t, n=name: t.update({n: torch.ones(shape)})))  # type: ignore[misc]


@pytest.mark.parametrize("change", ["cut", "flipped"])
def test_a_damaged_file_is_never_another_edit(
    tiny_kept: Callable[..., Any], tmp_path: Path, change: str
) -> None:
    path = tmp_path / "e.safetensors"
    edit = AffineAblate(oblique(), reference=2.0)
    save_edit(edit, path, model=tiny_kept("llama"))
    whole, refused = path.read_bytes(), 0
    for at in range(0, len(whole), 7):
        bad = whole[:at] if change == "cut" else whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :]
        path.write_bytes(bad)
        try:
            assert load_edit(path) == edit
        except MechsafetyError:
            refused += 1
    # Only the name of the model and the like may change and leave the edit as it was.
    assert refused > (0 if change == "flipped" else len(range(0, len(whole), 7)) - 1)


def test_directions_are_not_taken_for_an_edit(stored: tuple[Any, Path, Any]) -> None:
    with pytest.raises(MechsafetyError, match=r"not an edit: write ms.Ablate\(ms.load_directions\("):
        load_edit(stored[1])
