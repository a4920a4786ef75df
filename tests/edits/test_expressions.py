"""An edit in a line: what it means, what goes with what, and that nothing but a clear error comes of nonsense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mechsafety.core.errors import MechsafetyError
from mechsafety.directions.activations import ResidualCache, residual_stream
from mechsafety.directions.direction import Directions, find_directions
from mechsafety.directions.files import save_directions
from mechsafety.edits.expressions import _KINDS, parse_edit, read_expression
from mechsafety.edits.files import save_edit
from mechsafety.edits.interventions import Ablate, Add, AffineAblate, Edit, Orthogonalise, edited
from mechsafety.models.loading import known_fingerprint, model_name
from tests.prompt_sets import small_prompts


@pytest.fixture
def cache(tiny_kept: Callable[..., Any]) -> tuple[Any, ResidualCache]:
    model = tiny_kept("llama")
    return model, residual_stream(model, small_prompts().fit)


_NUMBERS = ("thresholds", "gaps", "stability", "split_half")


def stored(folder: Path, *several: Directions, name: str = "d.safetensors") -> Path:
    own = [
        replace(d, **{n: getattr(d, n).clone() for n in _NUMBERS}) for d in several
    ]  # a file shares nothing
    save_directions(own, folder / name)
    return folder / name


def refusal(text: str, model: Any) -> str:
    with pytest.raises(MechsafetyError) as caught:
        parse_edit(text, model)
    return str(caught.value)


# -- meaning ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [2, 4])
def test_affine_puts_every_prompt_where_the_harmless_mean_lies(
    cache: tuple[Any, ResidualCache], tmp_path: Path, layer: int
) -> None:
    model, streams = cache
    found = find_directions(streams, resamples=1)
    edit = parse_edit(f"affine({stored(tmp_path, found)}, layer={layer})", model)
    place = ("blocks.2.hook_resid_pre", "blocks.3.hook_resid_post")[layer == 4]
    assert [target.hook for target in edit.targets(4)] == [place]
    unit = found.at(layer=layer).unit
    harmless = (streams.select("harmless")[:, 0, layer] @ unit).mean()
    harmful = (streams.select("harmful")[:, 0, layer] @ unit).mean()
    with edited(model, edit):
        after = residual_stream(model, small_prompts().report).activations[:, 0, layer] @ unit
    torch.testing.assert_close(after, harmless.expand(len(after)), rtol=0, atol=1e-4)
    # The control: harmful prompts lay elsewhere.
    assert abs(float(harmful - harmless)) > 0.1


def test_directions_of_the_last_blocks_output_act_there(
    cache: tuple[Any, ResidualCache], tmp_path: Path
) -> None:
    model, streams = cache
    found = find_directions(streams, resamples=1)
    path = stored(tmp_path, found)
    vector = found.at(layer=4).vector
    assert parse_edit(f"add({path}, layer=4)", model) == Add(vector, layer=3, site="resid_post")
    assert parse_edit(f"add({path}, layer=3)", model) == Add(found.at(layer=3).vector, layer=3)
    assert parse_edit(f"add({path}, layer=1, site=mlp_out)", model) == Add(
        found.at(layer=1).vector, layer=1, site="mlp_out"
    )


def test_a_unit_direction_is_added_as_long_as_the_class_gap(
    cache: tuple[Any, ResidualCache], tmp_path: Path
) -> None:
    model, streams = cache
    found = find_directions(streams, method="pca", resamples=1)
    added = parse_edit(f"add({stored(tmp_path, found)}, layer=2)", model)
    assert float(added.tensors()[0].norm()) == pytest.approx(abs(float(found.gaps[0, 2])), rel=1e-5)
    assert abs(float(found.gaps[0, 2]) - 1) > 0.05


def test_only_ablate_reads_with_a_covector(cache: tuple[Any, ResidualCache], tmp_path: Path) -> None:
    model, streams = cache
    found = find_directions(streams, method="leace", resamples=1)
    path = stored(tmp_path, found)
    at = found.at(layer=2)
    assert parse_edit(f"ablate({path}, layer=2)", model) == Ablate(at) != Ablate(at.vector)
    assert parse_edit(f"orthogonalise({path}, layer=2)", model) == Orthogonalise(at.vector)
    affine = parse_edit(f"affine({path}, layer=2)", model)
    assert isinstance(affine, AffineAblate)
    assert affine.read is None


def test_random_directions_are_drawn_by_their_seed(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("gpt2")
    drawn = [parse_edit(f"ablate(random, seed={seed})", model) for seed in (0, 1, 1)]
    assert drawn[1] == drawn[2] != drawn[0] == parse_edit("ablate(random)", model)
    state = torch.get_rng_state()
    parse_edit("add(random, layer=1, seed=5)", model)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["a, b.safetensors", "alpha=0.5.safetensors", "it's.safetensors", " x .safetensors"])  # fmt: skip
def test_names_with_commas_and_such_go_in_quotes(
    cache: tuple[Any, ResidualCache], tmp_path: Path, name: str
) -> None:
    model, streams = cache
    found = find_directions(streams, resamples=1)
    path = stored(tmp_path, found, name=name)
    assert parse_edit(f'ablate("{path}", layer=2)', model) == Ablate(found.at(layer=2))
    saved = tmp_path / f"edit {name}"
    save_edit(Ablate(found.at(layer=2)), saved, model=model)
    for text in (str(saved), f'saved("{saved}")', f'saved("{saved}", any_weights=true)'):
        assert parse_edit(text, model) == Ablate(found.at(layer=2))
    if "," in name or "=" in name:
        assert refusal(f"ablate({path}, layer=2)", model)


# -- whose directions ---------------------------------------------------------------------------------


def test_of_several_models_the_loaded_ones_directions_are_taken(
    cache: tuple[Any, ResidualCache], tiny_kept: Callable[..., Any], tmp_path: Path
) -> None:
    model, streams = cache
    found = find_directions(streams, resamples=1)
    other = replace(found, vectors=-found.vectors, model="other", fingerprint="0" * 64)
    third = replace(other, vectors=2 * found.vectors.flip(0) + 1, model="third", fingerprint="1" * 64)
    narrow = replace(other, vectors=found.vectors[..., :16], model="narrow")
    three = {n: getattr(found, n)[:, :3] for n in ("vectors", *_NUMBERS)}
    shallow = replace(other, model="shallow", **three)
    path = stored(tmp_path, other, narrow, found, third)
    expected = Ablate(found.at(layer=2))
    assert parse_edit(f"ablate({path}, layer=2)", model) == expected
    # Copies of the weights count as the model, whatever they are called.
    renamed = stored(tmp_path, other, replace(found, model="renamed"), name="r.safetensors")
    assert parse_edit(f"ablate({renamed}, layer=2)", model) == expected

    elsewhere = tiny_kept("llama", seed=1)
    said = refusal(f"ablate({path}, layer=2)", elsewhere)
    assert "whose weights differ from" in said
    assert "add any_weights=true" in said
    said = refusal(f"ablate({path}, layer=2, any_weights=true)", elsewhere)
    assert "holds several models that fit" in said
    assert "name one with model=NAME" in said
    chosen = parse_edit(f"ablate({path}, layer=2, any_weights=true, model=other)", elsewhere)
    assert chosen == Ablate(other.at(layer=2)) != expected
    assert "model=nobody is not in" in refusal(f"ablate({path}, layer=2, model=nobody)", elsewhere)
    for wrong in (narrow, shallow):
        only = stored(tmp_path, wrong, name="w.safetensors")
        said = refusal(f"ablate({only}, layer=2, any_weights=true)", model)
        assert "none with the 4 layers and the 32 entries" in said


def test_models_without_a_record_go_by_their_weights(tiny: Callable[..., Any], tmp_path: Path) -> None:
    model = tiny("llama")
    found = find_directions(residual_stream(model, small_prompts().fit), resamples=1)
    object.__delattr__(model, "load_record")
    mine = replace(found, model=model_name(model), fingerprint=known_fingerprint(model))
    other = replace(found, model="other", vectors=-found.vectors)
    path = stored(tmp_path, other, mine)
    assert parse_edit(f"ablate({path}, layer=2)", model) == Ablate(found.at(layer=2))
    # A name is no proof of the weights.
    unknown = stored(tmp_path, other, replace(mine, fingerprint=""), name="unknown.safetensors")
    assert "any_weights=true" in refusal(f"ablate({unknown}, layer=2)", model)
    assert parse_edit(f"ablate({unknown}, layer=2, any_weights=true)", model) == Ablate(found.at(layer=2))


# -- what does not go together ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ablate(random, layer=2)", "'layer' goes with a directions file, not with random"),
        ("orthogonalise(random, position=-1)", "'position' goes with a directions file"),
        ("add(random, layer=2, any_weights=true)", "'any_weights' goes with a directions file"),
        ("add(random)", "an edit needs layer=L, 0 to 3"),
        ("ablate({d}, layer=2, seed=1)", "'seed' goes with random, not with a file"),
        ("ablate({e}, layer=2)", "holds an edit, not directions: give its path alone"),
        ("{d}", "holds directions, not an edit: write ms.Ablate("),
        ("saved({d})", "holds directions, not an edit"),
        ("saved({e}, alpha=1)", "'alpha' is not an option of saved: any_weights"),
        ("affine({d}, layer=2, sites=mlp_out)", "sites=mlp_out is not made of resid_pre, resid_post"),
        ("add({d}, layer=2, site=resid_mid)", "site=resid_mid is not one of resid_pre, attn_out"),
        ("add({d}, layer=2, layers=1-2)", "'layers' is not an option of add"),
        ("ablate({d}, layer=2, sites=)", "'sites=' is not of the form name=value"),
        ("ablate({d}, layer=2,)", "'' is not of the form name=value"),
        ("ablate({d}, 2)", "'2' is not of the form name=value"),
        ("ablate({d}, layer=2, alpha=0,5)", "'5' is not of the form name=value"),
        ("ablate(random, seed=-1)", "seed=-1 is not a whole number from 0"),
        ("ablate(random, seed=1_0)", "seed=1_0 is not a whole number"),
        ("ablate(random, seed=\u0663)", "seed=\u0663 is not a whole number"),
        ("ablate(random, alpha=inf)", "alpha=inf is not a number"),
        ("ablate(random, alpha=1e999)", "alpha=1e999 is not a number"),
        ("ablate(random, alpha=a\x1b[31m)", r"alpha='a\x1b[31m' is not a number"),
        ("ablate(random, layers=0-999999)", "is not layers such as"),
        ("ablate('d.safetensors, layer=2)", "the first argument is a directions file or 'random' (in quotes"),
        ("ablate()", "the first argument is a directions file"),
        ("ablate(~nobody-9/d.safetensors, layer=1)", "begins with the home folder of an unknown user"),
        ("~nobody-9/d.safetensors", "begins with the home folder of an unknown user"),
        ("a" * 400 + ".safetensors", "does not exist"),
        ("", "is neither a .safetensors file nor an expression"),
    ],
)
def test_wrong_words_are_named(
    cache: tuple[Any, ResidualCache], tmp_path: Path, text: str, said: str
) -> None:
    model, streams = cache
    found = find_directions(streams, resamples=1)
    d, e = stored(tmp_path, found), tmp_path / "e.safetensors"
    save_edit(Ablate(found.at(layer=2)), e, model=model)
    asked = text.format(d=d, e=e)
    message = refusal(asked, model)
    assert said in message
    assert message.startswith(f"edit {asked!r}") or asked.endswith(".safetensors")
    assert message.isprintable()


def test_what_needs_no_model_is_reported_without_one(tmp_path: Path) -> None:
    for text in ("ablate(nowhere.safetensors, layer=2)", "nowhere.safetensors", "ablate(random, alpha=x)"):
        with pytest.raises(MechsafetyError):
            read_expression(text)
    read = read_expression("ablate(random, seed=3, layers=1-2+0, sites=mlp_out)")
    assert (read.kind, read.source) == ("ablate", None)
    assert dict(read.values) == {"seed": 3, "layers": (1, 2, 0), "sites": ("mlp_out",)}


def test_edits_with_plus_between_them_are_their_sum(cache: tuple[Any, ResidualCache], tmp_path: Path) -> None:
    model, streams = cache
    found = find_directions(streams, resamples=1)
    path = stored(tmp_path, found, name="a+refusals.safetensors")
    saved = tmp_path / "own + more.safetensors"
    save_edit(Ablate(found.at(layer=2)), saved, model=model)
    first, second = f"ablate({path}, layer=2, layers=1+2)", "add(random, layer=1)"
    expected = parse_edit(first, model) + parse_edit(second, model)
    assert parse_edit(f"{first} + {second}", model) == parse_edit(f"{first}+{second}", model) == expected
    assert parse_edit(f"{second} + {first}", model) != expected
    assert parse_edit(str(saved), model) == Ablate(found.at(layer=2))
    assert parse_edit(f"saved('{saved}') + {second}", model).describe().count(" + ") == 1
    for wrong, said in (
        (f"{first} +", "an edit is missing beside '+'"),
        (f"{first} + ablate(x)", "'x' does not exist"),
    ):
        assert said in refusal(wrong, model)


# -- nonsense -----------------------------------------------------------------------------------------


class _Shape:
    n_layers, d_model, model_name = 4, 32, "stub"


class _Stub:
    cfg = _Shape()
    original_model = torch.nn.Linear(2, 2)


def _only_clear_errors(text: str) -> Edit | None:
    said = ""
    try:
        return parse_edit(text, _Stub())  # type: ignore[arg-type]
    except MechsafetyError as error:
        said = str(error)
    assert said.isprintable()
    assert said.startswith(f"edit {text!r}") or text.strip().endswith(".safetensors")
    return None


_OPTIONS = sorted({name for names, _ in _KINDS.values() for name in names})
_VALUES = st.one_of(
    st.sampled_from(["0", "3", "-1", "0.5", "true", "false", "all", "generated", "mlp_out", "resid_pre"]),
    st.sampled_from(["0-2", "1+3", "attn_out+mlp_out", "resid_post", "9" * 30, "1e99", "nan", "-", "+"]),
    st.text(max_size=6),
)


@given(text=st.text(max_size=80))
def test_any_text_is_an_edit_or_one_clear_error(text: str) -> None:
    _only_clear_errors(text)


@given(inside=st.text(max_size=40), kind=st.sampled_from(sorted(_KINDS)))
def test_any_arguments_are_an_edit_or_one_clear_error(inside: str, kind: str) -> None:
    _only_clear_errors(f"{kind}({inside})")
    _only_clear_errors(f"{kind}(random,{inside})")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    kind=st.sampled_from(sorted(_KINDS)),
    source=st.sampled_from(["random", "{d}", "'{d}'", '"{d}"', "{d}x"]),
    options=st.lists(st.tuples(st.sampled_from(_OPTIONS), _VALUES), max_size=4),
)
def test_any_options_are_an_edit_or_one_clear_error(
    directions_file: Path, kind: str, source: str, options: list[tuple[str, str]]
) -> None:
    words = "".join(f", {name}={value}" for name, value in options)
    _only_clear_errors(f"{kind}({source.format(d=directions_file)}{words})")


def test_the_control_some_of_it_is_an_edit(directions_file: Path) -> None:
    assert _only_clear_errors("ablate(random, alpha=.5, layers=0-2+3, positions=generated)") is not None
    assert _only_clear_errors(f"affine({directions_file}, layer=3, sites=resid_pre)") is not None


@pytest.fixture(scope="module")
def directions_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vectors = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    numbers = torch.ones(1, 5)
    found = Directions(
        vectors=vectors,
        thresholds=numbers,
        gaps=numbers,
        stability=numbers,
        split_half=numbers,
        positions=(-1,),
        method="mean_difference",
        centring=None,
        model="stub",
        fingerprint=known_fingerprint(_Stub()),
        n_harmful=2,
        n_harmless=2,
        seed=0,
    )
    return stored(tmp_path_factory.mktemp("directions"), found)
