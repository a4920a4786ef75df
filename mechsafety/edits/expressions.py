"""Edits in a line: ``ablate(directions.safetensors, layer=22, alpha=0.5)``, a saved edit's path, or a sum of these.

:func:`read_expression` checks what can be checked without a model, so that a typing error is not found after
minutes of loading; :meth:`EditExpression.for_model` makes the edit.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.directions.direction import Direction, Directions
from mechsafety.directions.files import read_directions
from mechsafety.edits.files import is_edit_file, load_edit
from mechsafety.edits.interventions import (
    POSITIONS,
    SITES,
    WRITERS,
    Ablate,
    Add,
    AffineAblate,
    Edit,
    Orthogonalise,
    Site,
)
from mechsafety.edits.sums import added
from mechsafety.edits.values import STREAM_SITES
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.models.bound_files import is_file, require_chat
from mechsafety.models.loading import known_fingerprint, model_name

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_CALL = re.compile(r"\s*([A-Za-z_]+)\s*\((.*)\)\s*", re.DOTALL)
_SOURCE = re.compile(r"""\s*(?:"([^"]+)"|'([^']+)'|([^,"'=]*[^,"'=\s]))\s*(?:,(.*))?""", re.DOTALL)
_WHOLE = re.compile(r"-?[0-9]{1,9}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?")
_SPAN = re.compile(r"\s*([0-9]{1,6})(?:-([0-9]{1,6}))?\s*")
_HOW = "e.g. ablate(directions.safetensors, layer=22), add(FILE, layer=22, coefficient=-1) or ablate(random, seed=0)"


@dataclass(frozen=True, kw_only=True)
class _Word:
    """``name=value`` as it stands in an expression, and how to complain about it."""

    name: str
    value: str
    where: str

    def wrong(self, allowed: str) -> MechsafetyError:
        shown = self.value if self.value.isprintable() else repr(self.value)
        return MechsafetyError(f"{self.where}: {self.name}={shown} is not {allowed}")


@dataclass(frozen=True, kw_only=True)
class EditExpression:
    """An edit as it was written, its words understood; ``source`` None stands for ``random``."""

    text: str
    kind: str
    source: Path | None
    words: Mapping[str, _Word]
    values: Mapping[str, Any]

    @property
    def where(self) -> str:
        return f"edit {self.text!r}"

    def for_model(self, model: TransformerBridge) -> Edit:
        """The edit for ``model``; raises :class:`MechsafetyError` where it does not fit."""
        try:
            return _KINDS[self.kind][1](self, model)
        except MechsafetyError as error:
            # A path alone is its own expression, and the message names it already.
            if str(error).startswith(self.where) or not self.text.rstrip().endswith(")"):
                raise
            raise MechsafetyError(f"{self.where}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class ExpressionSum:
    """Expressions with ``+`` between them: edits that act in this order."""

    parts: tuple[EditExpression, ...]

    def for_model(self, model: TransformerBridge) -> Edit:
        """Their sum for ``model``; raises :class:`MechsafetyError` where one does not fit."""
        return added(*(part.for_model(model) for part in self.parts))


def parse_edit(text: str, model: ModelLike) -> Edit:
    """The edit that ``text`` names, for ``model``.

    ``text`` is one edit, or several with ``+`` between them, which act in that order. Each is the path of a saved edit
    (also ``saved(FILE, any_weights=true)``) or KIND(SOURCE, name=value, ...).
    KIND is ``ablate``, ``affine``, ``add`` or ``orthogonalise``. SOURCE is a file of directions that mechsafety
    saved (in quotes where its name holds a comma, a quote or ``=``), or ``random``: a vector of independent
    standard normal entries drawn by ``seed`` (default 0), the control.

    Which direction: ``layer``, ``position`` (default -1); of the models in the file the one with the loaded model's
    weights, of others only with ``any_weights=true``, and ``model=NAME`` where several fit; found under other chat
    settings than the model's only with ``any_chat=true``. What is done with it:
    ``alpha``, ``coefficient``, ``layers`` (10-20, 3+7), ``sites`` or ``writers`` (attn_out+mlp_out), ``site``,
    ``positions``, ``norm_preserving``, as in the classes of :mod:`mechsafety.edits.values`.

    ``add`` acts where its direction was found, and with the mean difference's length; a unit direction is first
    made as long as the class gap. ``affine`` takes the harmless mean's coordinate on the unit direction as its
    reference (threshold - gap / 2) and acts, unless set otherwise, only where that was measured; it projects
    orthogonally, also for a direction that has a covector.

    Raises :class:`MechsafetyError` that repeats the expression and names the wrong word and what is allowed.
    """
    model = as_model(model)
    return read_expression(text).for_model(model)


def read_expression(text: str) -> EditExpression | ExpressionSum:
    """``text`` understood and checked as far as that goes without a model; see :func:`parse_edit`."""
    parts = [text] if is_file(Path(text.strip())) else _summands(text)
    if len(parts) > 1 and not all(part.strip() for part in parts):
        raise MechsafetyError(f"edit {text!r}: an edit is missing beside '+'; {_HOW}")
    read = tuple(_read_one(part.strip() if len(parts) > 1 else part) for part in parts)
    return read[0] if len(read) == 1 else ExpressionSum(parts=read)


def _summands(text: str) -> list[str]:
    """The text cut at each ``+`` that stands behind a whole edit; names of files and layers may hold others."""
    cuts, depth = [-1], 0
    for at, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == "+" and depth == 0 and text[:at].rstrip().endswith((")", ".safetensors")):
            cuts.append(at)
    return [text[a + 1 : b] for a, b in itertools.pairwise([*cuts, len(text)])]


def _read_one(text: str) -> EditExpression:
    where = f"edit {text!r}"
    call = _CALL.fullmatch(text)
    if call is None:
        if not text.strip().endswith(".safetensors"):
            raise MechsafetyError(f"{where} is neither a .safetensors file nor an expression, {_HOW}")
        path = _path(text.strip(), where)
        if not is_file(path):
            raise MechsafetyError(f"edit file {str(path)!r} does not exist")
        return EditExpression(text=text, kind="saved", source=path, words={}, values={})
    kind = call[1].lower()
    if kind not in _KINDS:
        raise MechsafetyError(f"{where}: kind {kind!r} is not one of {', '.join(_KINDS)}")
    allowed, _ = _KINDS[kind]
    source, words = _arguments(where, call[2])
    unknown = [name for name in words if name not in allowed]
    if unknown:
        raise MechsafetyError(f"{where}: {unknown[0]!r} is not an option of {kind}: {', '.join(allowed)}")
    path = _source(kind, source, words, where)
    values = {name: _value(kind, word) for name, word in words.items()}
    return EditExpression(text=text, kind=kind, source=path, words=words, values=values)


def _arguments(where: str, inside: str) -> tuple[str, dict[str, _Word]]:
    found = _SOURCE.fullmatch(inside)
    if found is None:
        raise MechsafetyError(
            f"{where}: the first argument is a directions file or 'random' (in quotes where its name holds a "
            f"comma, a quote or '='); {_HOW}"
        )
    words: dict[str, _Word] = {}
    last: str | None = None
    for part in found[4].split(",") if found[4] is not None else []:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        # Layers may have commas between them: a part without '=' belongs to the option before it.
        if not equals and name and last in ("layers", "sites", "writers"):
            words[last] = _Word(name=last, value=f"{words[last].value},{name}", where=where)
            continue
        if not equals or not name or not value:
            raise MechsafetyError(f"{where}: {part.strip()!r} is not of the form name=value")
        if name in words:
            raise MechsafetyError(f"{where}: {name!r} is given twice")
        words[name] = _Word(name=name, value=value, where=where)
        last = name
    return found[1] or found[2] or found[3], words


def _source(kind: str, source: str, words: Mapping[str, _Word], where: str) -> Path | None:
    """The file that holds the directions or the edit; None for random. Refuses what does not go with it."""
    random = source == "random" and kind != "saved"
    if random and kind == "affine":
        raise MechsafetyError(f"{where}: an affine edit needs the class means that a directions file holds")
    for name in words:
        if random and name in _FOUND and not (name == "layer" and kind == "add"):
            raise MechsafetyError(f"{where}: {name!r} goes with a directions file, not with random")
        if not random and name == "seed":
            raise MechsafetyError(f"{where}: 'seed' goes with random, not with a file")
    if random:
        return None
    path = _path(source, where)
    if not is_file(path):
        what = "edit file" if kind == "saved" else "directions file"
        raise MechsafetyError(f"{where}: {what} {str(path)!r} does not exist")
    if kind != "saved" and is_edit_file(path):
        raise MechsafetyError(
            f"{where}: {str(path)!r} holds an edit, not directions: give its path alone, without {kind}(...)"
        )
    return path


def _path(text: str, where: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise MechsafetyError(f"{where}: {text!r} begins with the home folder of an unknown user") from None


# -- values of options --------------------------------------------------------------------------------


def _value(kind: str, word: _Word) -> Any:
    """The value of one option, as far as it can be checked without a model."""
    if word.name in ("layer", "position", "seed"):
        if not _WHOLE.fullmatch(word.value) or (word.name == "seed" and word.value.startswith("-")):
            raise word.wrong("a whole number" + (" from 0" if word.name == "seed" else ""))
        return int(word.value)
    if word.name in ("alpha", "coefficient"):
        if not _NUMBER.fullmatch(word.value):
            raise word.wrong("a number")
        return float(word.value)
    if word.name in ("any_weights", "any_chat", "norm_preserving"):
        if word.value.lower() not in ("true", "false"):
            raise word.wrong("true or false")
        return word.value.lower() == "true"
    if word.name in ("site", "positions"):
        known = SITES if word.name == "site" else POSITIONS
        if word.value not in known:
            raise word.wrong(f"one of {', '.join(known)}")
        return word.value
    if word.name in ("sites", "writers"):
        known = WRITERS if word.name == "writers" else STREAM_SITES if kind == "affine" else SITES
        chosen = tuple(piece.strip() for piece in re.split(r"[+,]", word.value))
        if any(piece not in known for piece in chosen):
            raise word.wrong(f"made of {', '.join(known)}, with + between them")
        return tuple(dict.fromkeys(chosen))
    return _spans(word) if word.name == "layers" else word.value


def _spans(word: _Word) -> tuple[int, ...]:
    found: list[int] = []
    for piece in re.split(r"[+,]", word.value):
        span = _SPAN.fullmatch(piece)
        first, last = (int(span[1]), int(span[2] or span[1])) if span is not None else (1, 0)
        if last < first or last - first > 10_000:
            raise word.wrong("layers such as 3, 3+7 or 10-20")
        found += range(first, last + 1)
    return tuple(dict.fromkeys(found))


# -- making the edit ----------------------------------------------------------------------------------


def _ablate(asked: EditExpression, model: TransformerBridge) -> Edit:
    return Ablate(_direction(asked, model), **_options(asked, model))


def _affine(asked: EditExpression, model: TransformerBridge) -> Edit:
    found, layer, position = _found(asked, model)
    row = found.positions.index(position)
    harmless = found.thresholds[row, layer] - found.gaps[row, layer] / 2
    options = _options(asked, model)
    block, site = _place(layer, model.cfg.n_layers)
    if "layers" not in options:
        options["layers"] = (block,)
        options.setdefault("sites", (site,))
    return AffineAblate(found.at(layer=layer, position=position).vector, reference=float(harmless), **options)


def _add(asked: EditExpression, model: TransformerBridge) -> Edit:
    options = _options(asked, model)
    if asked.source is None:
        layer, vector = _layer(asked, model.cfg.n_layers - 1), _random(asked, model)
    else:
        found, layer, position = _found(asked, model)
        vector = found.steering(layer=layer, position=position)
    block, site = _place(layer, model.cfg.n_layers)
    options.setdefault("site", site)
    return Add(vector, layer=block, **options)


def _orthogonalise(asked: EditExpression, model: TransformerBridge) -> Edit:
    return Orthogonalise(_direction(asked, model), **_options(asked, model))


def _saved(asked: EditExpression, model: TransformerBridge) -> Edit:
    assert asked.source is not None
    weights, chat = (asked.values.get(name, False) for name in ("any_weights", "any_chat"))
    return load_edit(asked.source, model=model, allow_other_weights=weights, allow_other_chat=chat)


_FOUND = ("layer", "position", "model", "any_weights", "any_chat")
_PLACE = (*_FOUND, "seed")
_Build = Callable[[EditExpression, "TransformerBridge"], Edit]
_KINDS: dict[str, tuple[tuple[str, ...], _Build]] = {
    "ablate": ((*_PLACE, "alpha", "layers", "sites", "positions"), _ablate),
    "affine": ((*_PLACE, "alpha", "layers", "sites", "positions"), _affine),
    "add": ((*_PLACE, "coefficient", "site", "positions"), _add),
    "orthogonalise": ((*_PLACE, "alpha", "layers", "writers", "norm_preserving"), _orthogonalise),
    "saved": (("any_weights", "any_chat"), _saved),
}


def _options(asked: EditExpression, model: TransformerBridge) -> dict[str, Any]:
    """The edit's own options, as far as they are given."""
    options = {name: value for name, value in asked.values.items() if name not in _PLACE}
    n_layers = model.cfg.n_layers
    if any(layer >= n_layers for layer in options.get("layers", ())):
        raise asked.words["layers"].wrong(f"within this model's layers, 0 to {n_layers - 1}")
    return options


def _place(layer: int, n_layers: int) -> tuple[int, Site]:
    """The block and site where directions of ``layer`` live: layer n_layers is the last block's output."""
    return (layer, "resid_pre") if layer < n_layers else (n_layers - 1, "resid_post")


def _direction(asked: EditExpression, model: TransformerBridge) -> Direction | Float[Tensor, " d_model"]:
    if asked.source is None:
        return _random(asked, model)
    found, layer, position = _found(asked, model)
    return found.at(layer=layer, position=position)


def _random(asked: EditExpression, model: TransformerBridge) -> Float[Tensor, " d_model"]:
    generator = torch.Generator().manual_seed(asked.values.get("seed", 0))
    return torch.randn(model.cfg.d_model, generator=generator, dtype=torch.float32)


def _found(asked: EditExpression, model: TransformerBridge) -> tuple[Directions, int, int]:
    """The directions meant, with the layer and the position, at which there is one."""
    found = _directions(asked, model)
    if not asked.values.get("any_chat", False):
        require_chat(found.chat, model, what=f"what {str(asked.source)!r} holds", hint="add any_chat=true")
    layer, position = _layer(asked, found.n_layers - 1), asked.values.get("position", -1)
    found.at(layer=layer, position=position)
    return found, layer, position


def _layer(asked: EditExpression, end: int) -> int:
    if "layer" not in asked.values:
        raise MechsafetyError(f"an edit needs layer=L, 0 to {end}: the layer whose direction is meant")
    if not 0 <= asked.values["layer"] <= end:
        raise asked.words["layer"].wrong(f"a layer of this model, 0 to {end}")
    return asked.values["layer"]


def _directions(asked: EditExpression, model: TransformerBridge) -> Directions:
    """Of the models in the file the one with this model's weights, else the one that is asked for and fits."""
    assert asked.source is not None
    name, source = model_name(model), str(asked.source)
    several = list(read_directions(asked.source).values())
    held = ", ".join(d.model for d in several)
    if "model" in asked.values:
        several = [d for d in several if d.model == asked.values["model"]]
        if not several:
            raise asked.words["model"].wrong(f"in {source!r}, which holds directions of {held}")
    known = known_fingerprint(model)
    same = [d for d in several if known and d.fingerprint == known]
    if same:
        return same[0]
    shape = (model.cfg.n_layers, model.cfg.d_model)
    fitting = [d for d in several if (d.n_layers - 1, d.vectors.shape[-1]) == shape]
    if not fitting:
        raise MechsafetyError(
            f"{source!r} holds directions of {held}, none with the {shape[0]} layers and the {shape[1]} entries of "
            f"{name!r}'s residual stream"
        )
    if known and not asked.values.get("any_weights", False):
        raise MechsafetyError(
            f"{source!r} holds directions of {held}, whose weights differ from {name!r}'s; to use them all the "
            "same add any_weights=true"
        )
    # Of other weights, or where any will do, a model of the same name is the one.
    fitting = [d for d in fitting if d.model == name] or fitting
    if len(fitting) > 1:
        raise MechsafetyError(f"{source!r} holds several models that fit, {held}: name one with model=NAME")
    return fitting[0]
