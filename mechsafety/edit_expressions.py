"""Edits in a line: ``ablate(directions.safetensors, layer=22, alpha=0.5)``, or the path of a saved edit."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mechsafety.directions import Direction, Directions, load_directions
from mechsafety.edit_files import load_edit
from mechsafety.errors import MechsafetyError
from mechsafety.interventions import POSITIONS, SITES, WRITERS, Ablate, Add, AffineAblate, Edit, Orthogonalise
from mechsafety.models import load_record, model_name

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_CALL = re.compile(r"\s*([A-Za-z_]+)\s*\((.*)\)\s*", re.DOTALL)
_HOW = "e.g. ablate(directions.safetensors, layer=22), add(FILE, layer=22, coefficient=-1) or ablate(random, seed=0)"


@dataclass(frozen=True, kw_only=True)
class _Word:
    """``name=value`` as it stands, and how to complain about it."""

    name: str
    value: str
    where: str

    def wrong(self, allowed: str) -> MechsafetyError:
        return MechsafetyError(f"{self.where}: {self.name}={self.value} is not {allowed}")


def parse_edit(text: str, model: TransformerBridge) -> Edit:
    """The edit that ``text`` names, for ``model``.

    ``text`` is the path of a saved edit (also ``saved(FILE, any_weights=true)``) or KIND(SOURCE, name=value, ...).
    KIND is ``ablate``, ``affine``, ``add`` or ``orthogonalise``; SOURCE a file of directions that mechsafety
    saved, or ``random``, a direction drawn by ``seed``: the control. ``layer`` and ``position`` say which
    direction; ``layers``, ``sites``, ``positions``, ``alpha``, ``writers`` and the rest are the edit's own.

    Raises :class:`MechsafetyError` that repeats the expression and names the wrong word and what is allowed.
    """
    call = _CALL.fullmatch(text)
    if call is None:
        if text.strip().endswith(".safetensors"):
            return load_edit(Path(text.strip()).expanduser(), model=model)
        raise MechsafetyError(f"edit {text!r} is neither a .safetensors file nor an expression, {_HOW}")
    kind, source, words = call[1].lower(), *_arguments(text, call[2])
    if kind not in _KINDS:
        raise MechsafetyError(f"edit {text!r}: kind {kind!r} is not one of {', '.join(_KINDS)}")
    allowed, build = _KINDS[kind]
    unknown = [name for name in words if name not in allowed]
    if unknown:
        raise MechsafetyError(
            f"edit {text!r}: {unknown[0]!r} is not an option of {kind}: {', '.join(allowed)}"
        )
    return build(source, words, model, f"edit {text!r}")


def _arguments(text: str, inside: str) -> tuple[str, dict[str, _Word]]:
    parts = [part.strip() for part in inside.split(",")]
    # Spans of layers hold commas: a part without '=' behind the first belongs to the option before it.
    source, rest = parts[0], parts[1:]
    if not source or "=" in source:
        raise MechsafetyError(f"edit {text!r}: the first argument is a directions file or 'random'; {_HOW}")
    words: dict[str, _Word] = {}
    last: str | None = None
    for part in rest:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals and last is not None and part:
            words[last] = _Word(name=last, value=f"{words[last].value},{part}", where=words[last].where)
            continue
        if not equals or not name or not value:
            raise MechsafetyError(f"edit {text!r}: {part!r} is not of the form name=value")
        if name in words:
            raise MechsafetyError(f"edit {text!r}: {name!r} is given twice")
        words[name] = _Word(name=name, value=value, where=f"edit {text!r}")
        last = name
    return source, words


Words = Mapping[str, _Word]
_PLACE = ("layer", "position", "seed", "any_weights")


def _ablate(source: str, words: Words, model: TransformerBridge, where: str) -> Edit:
    return Ablate(_direction(source, words, model, where), **_options(words, model))


def _affine(source: str, words: Words, model: TransformerBridge, where: str) -> Edit:
    if source == "random":
        raise MechsafetyError(f"{where}: an affine edit needs the class means that a directions file holds")
    found = _directions(source, words, model, where)
    direction = _direction(source, words, model, where)
    row = found.positions.index(direction.position)
    # The harmless mean on the unit direction: half a gap below the middle of the class means.
    harmless = found.thresholds[row, direction.layer] - found.gaps[row, direction.layer] / 2
    options = _options(words, model)
    # The reference was measured at one layer; elsewhere the stream's mean is another.
    options.setdefault("layers", (min(direction.layer, model.cfg.n_layers - 1),))
    return AffineAblate(direction.vector, reference=float(harmless), **options)


def _add(source: str, words: Words, model: TransformerBridge, where: str) -> Edit:
    options = _options(words, model)
    if source == "random":
        return Add(_random(words, model), layer=_layer(words, model), **options)
    found = _directions(source, words, model, where)
    direction = _direction(source, words, model, where)
    steering = found.steering(layer=direction.layer, position=direction.position)
    return Add(steering, layer=direction.layer, **options)


def _orthogonalise(source: str, words: Words, model: TransformerBridge, where: str) -> Edit:
    return Orthogonalise(_direction(source, words, model, where), **_options(words, model))


def _saved(source: str, words: Words, model: TransformerBridge, _where: str) -> Edit:
    return load_edit(Path(source).expanduser(), model=model, allow_other_weights=_flag(words, "any_weights"))


_Build = Callable[[str, Words, "TransformerBridge", str], Edit]
_KINDS: dict[str, tuple[tuple[str, ...], _Build]] = {
    "ablate": ((*_PLACE, "alpha", "layers", "sites", "positions"), _ablate),
    "affine": ((*_PLACE, "alpha", "layers", "sites", "positions"), _affine),
    "add": ((*_PLACE, "coefficient", "positions"), _add),
    "orthogonalise": ((*_PLACE, "alpha", "layers", "writers", "norm_preserving"), _orthogonalise),
    "saved": (("any_weights",), _saved),
}


def _direction(source: str, words: Words, model: TransformerBridge, where: str) -> Direction:
    if source == "random":
        return Direction(vector=_random(words, model), layer=0, position=-1, method="mean_difference")
    found = _directions(source, words, model, where)
    layer = _layer(words, model, last=found.n_layers - 1)
    position = _number(words, "position", int, -1)
    try:
        return found.at(layer=layer, position=position)
    except MechsafetyError as error:
        raise MechsafetyError(f"{where}: {error}") from None


def _random(words: Words, model: TransformerBridge) -> torch.Tensor:
    generator = torch.Generator().manual_seed(_number(words, "seed", int, 0))
    return torch.randn(model.cfg.d_model, generator=generator)


def _directions(source: str, words: Words, model: TransformerBridge, where: str) -> Directions:
    several = load_directions(Path(source).expanduser())
    record = load_record(model)
    known = record.fingerprint if record else ""
    same = [d for d in several.values() if known and d.fingerprint == known]
    if same:
        return same[0]
    fitting = [d for d in several.values() if d.vectors.shape[-1] == model.cfg.d_model]
    if not fitting:
        raise MechsafetyError(
            f"{where}: {source!r} holds directions of {', '.join(several)}, none with the {model.cfg.d_model} "
            f"entries of {model_name(model)!r}'s residual stream"
        )
    if known and not _flag(words, "any_weights"):
        raise MechsafetyError(
            f"{where}: {source!r} holds directions of {', '.join(several)}, whose weights differ from "
            f"{model_name(model)!r}'s; to use them all the same add any_weights=true"
        )
    if len(fitting) > 1:
        raise MechsafetyError(f"{where}: {source!r} holds several models that fit: {', '.join(several)}")
    return fitting[0]


def _options(words: Words, model: TransformerBridge) -> dict[str, Any]:
    """The edit's own options, as far as they are given."""
    given: dict[str, Any] = {}
    for name in ("alpha", "coefficient"):
        if name in words:
            given[name] = _number(words, name, float, 0.0)
    if "layers" in words:
        given["layers"] = _span(words["layers"], model.cfg.n_layers)
    for name, known in (("sites", SITES), ("writers", WRITERS)):
        if name in words:
            given[name] = _several(words[name], known)
    if "positions" in words:
        word = words["positions"]
        if word.value not in POSITIONS:
            raise word.wrong(f"one of {', '.join(POSITIONS)}")
        given["positions"] = word.value
    if "norm_preserving" in words:
        given["norm_preserving"] = _flag(words, "norm_preserving")
    return given


def _several(word: _Word, known: tuple[str, ...]) -> tuple[str, ...]:
    chosen = tuple(piece.strip() for piece in re.split(r"[+,]", word.value))
    if any(piece not in known for piece in chosen):
        raise word.wrong(f"made of {', '.join(known)}, with + between them")
    return tuple(dict.fromkeys(chosen))


def _span(word: _Word, n_layers: int) -> tuple[int, ...]:
    found: list[int] = []
    for piece in re.split(r"[+,]", word.value):
        span = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", piece)
        if span is None or int(span[2] or span[1]) < int(span[1]):
            raise word.wrong("layers such as 3, 3+7 or 10-20")
        if int(span[2] or span[1]) >= n_layers:
            raise word.wrong(f"within this model's layers, 0 to {n_layers - 1}")
        found += range(int(span[1]), int(span[2] or span[1]) + 1)
    return tuple(dict.fromkeys(found))


def _layer(words: Words, model: TransformerBridge, last: int | None = None) -> int:
    end = model.cfg.n_layers - 1 if last is None else last
    if "layer" not in words:
        raise MechsafetyError(
            f"an edit needs layer=L, 0 to {end}: the layer whose direction is meant; {_HOW}"
        )
    layer = _number(words, "layer", int, 0)
    if not 0 <= layer <= end:
        raise words["layer"].wrong(f"a layer of this model, 0 to {end}")
    return layer


def _number(words: Words, name: str, kind: Any, default: Any) -> Any:
    if name not in words:
        return default
    try:
        value = kind(words[name].value)
    except ValueError:
        value = float("nan")
    if value != value or abs(value) > 1e9:
        raise words[name].wrong("a whole number" if kind is int else "a number")
    return value


def _flag(words: Words, name: str) -> bool:
    if name not in words:
        return False
    if words[name].value.lower() not in ("true", "false"):
        raise words[name].wrong("true or false")
    return words[name].value.lower() == "true"
