"""Scores of every linear map from one pass over examples, in memory or as a file that is read map by map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from mechsafety.core.arguments import as_path
from mechsafety.core.boundary import checked_construction, checked_methods
from mechsafety.core.errors import MechsafetyError
from mechsafety.models.bound_files import FileKind
from mechsafety.regions.maps import LinearMap

Loss = Literal["mean", "sum"]
Positions = Literal["paper", "predictive"]
Method = Literal["snip", "wanda"]

FILES = FileKind(noun="score", key="mechsafety_attribution", holds="scores")
_KIND = "scores"


@checked_methods
@checked_construction
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Attribution:
    """SNIP scores and Gram matrices of every linear map over one set of examples.

    ``shapes`` holds (d_out, d_in) of each map and ``sites`` the name of its input, which maps may share.
    ``n_tokens`` counts the columns of X, of which Gram matrices are sums. ``fingerprint`` is that of the model's
    weights, and ``examples_sha256`` that of the token ids. ``tensors`` gives ``snip/MAP`` [d_out, d_in] and
    ``gram/SITE`` [d_in, d_in], both float32: a mapping in memory, or a file's (:meth:`open`).

    Arguments:
        n_examples: How many examples the scores are over.
        loss: Of which loss SNIP takes gradients (:func:`score_weights`).
        positions: Which tokens the Gram matrices are over (:func:`score_weights`).
        model: Name of the model.

    Example:
        >>> safety.n_examples == len(examples)
        True
        >>> len(safety.shapes) == len(maps)
        True
    """

    shapes: Mapping[str, tuple[int, int]]
    sites: Mapping[str, str]
    n_examples: int
    n_tokens: int
    loss: Loss
    positions: Positions
    tensors: Mapping[str, Tensor]
    model: str = ""
    fingerprint: str = ""
    examples_sha256: str = ""

    def __post_init__(self) -> None:
        if set(self.shapes) != set(self.sites) or not self.shapes:
            raise MechsafetyError(
                "an attribution needs a shape and a site for each of its maps, and a map at least"
            )
        for what, allowed in (("loss", Loss), ("positions", Positions)):
            if getattr(self, what) not in get_args(allowed):
                raise MechsafetyError(
                    f"{what} {getattr(self, what)!r} is not one of {', '.join(get_args(allowed))}"
                )
        if self.n_examples < 1 or self.n_tokens < 1:
            raise MechsafetyError(
                f"scores over {self.n_examples} examples and {self.n_tokens} tokens: 1 of each at least"
            )

    @classmethod
    def open(cls, path: str | Path) -> Attribution:
        """The scores that :func:`score_weights` stored; a map is read when it is asked for.

        Raises :class:`MechsafetyError` for a missing or damaged file, one of another kind or format, and an
        unfinished one.
        """
        path = as_path(path)
        return cls(**read_facts(path, kind=_KIND)["attribution"], tensors=StoredTensors(path))

    def save(self, path: str | Path) -> None:
        """Write a file that :meth:`open` reads; it is whole or not there."""
        path = as_path(path)
        facts = {
            name: getattr(self, name)
            for name in (
                "n_examples",
                "n_tokens",
                "loss",
                "positions",
                "model",
                "fingerprint",
                "examples_sha256",
            )
        } | {"shapes": {k: list(v) for k, v in self.shapes.items()}, "sites": dict(self.sites)}
        FILES.write(path, self.tensors, {"kind": _KIND, "attribution": facts})

    def snip(self, name: str) -> Float[Tensor, "d_out d_in"]:
        """E_x |W * grad_W L(x)| of map ``name``: a mean over examples, L the answer's negative log-likelihood."""
        return self.tensors[f"snip/{self._known(name)}"]

    def gram(self, name: str) -> Float[Tensor, "d_in d_in"]:
        """sum x x^T over the calibration tokens, x the input of map ``name``."""
        return self.tensors[f"gram/{self.sites[self._known(name)]}"]

    def norms(self, name: str) -> Float[Tensor, " d_in"]:
        """||X_j||_2 of every input of map ``name``: the root of the Gram matrix's diagonal."""
        return self.gram(name).diagonal().sqrt()

    def wanda(self, linear: LinearMap) -> Float[Tensor, "d_out d_in"]:
        """|W_ij| * ||X_j||_2 of the map ``linear`` (Sun et al. 2023, arXiv 2306.11695), in float32, W as it is now."""
        weight = self._weight(linear)
        return weight.abs() * self.norms(linear.name).to(weight.device)

    def scores(self, linear: LinearMap, method: Method) -> Float[Tensor, "d_out d_in"]:
        """The scores of ``linear`` by ``method``, on the device of its weights.

        Raises :class:`MechsafetyError` for an unknown method, and for a map that has no scores.
        """
        if method == "wanda":
            return self.wanda(linear)
        if method == "snip":
            return self.snip(linear.name).to(self._weight(linear).device)
        raise MechsafetyError(f"method {method!r} is not one of {', '.join(get_args(Method))}")

    def describe(self) -> str:
        """One line that says over what the scores are."""
        source = f" of {self.model}" if self.model else ""
        return (
            f"scores of {len(self.shapes)} linear maps{source} over {self.n_examples} examples, {self.n_tokens:,} "
            f"tokens ({self.loss} loss, {self.positions} positions)"
        )

    __repr__ = describe

    def _known(self, name: str) -> str:
        if name not in self.shapes:
            raise MechsafetyError(
                f"no scores of linear map {name!r}; there are {', '.join(list(self.shapes)[:4])}, ..."
            )
        return name

    def _weight(self, linear: LinearMap) -> Float[Tensor, "d_out d_in"]:
        shape = self.shapes[self._known(linear.name)]
        if shape != (linear.d_out, linear.d_in):
            raise MechsafetyError(
                f"{linear.name} is {linear.d_out} x {linear.d_in}, its scores are {shape[0]} x {shape[1]}: they are "
                f"of another model{f', {self.model}' if self.model else ''}"
            )
        return linear.weight().float()


class StoredTensors(Mapping[str, Tensor]):
    """Tensors of a safetensors file, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getitem__(self, name: str) -> Tensor:
        with FILES.opened(self.path) as stored:
            if name not in stored.keys():  # noqa: SIM118 - no mapping
                raise MechsafetyError(f"score file {str(self.path)!r} lacks {name}: it is damaged")
            return stored.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        with FILES.opened(self.path) as stored:
            return iter(list(stored.keys()))

    def __len__(self) -> int:
        return len(list(iter(self)))


def read_facts(path: str | Path, *, kind: str) -> dict[str, Any]:
    """The record of a score file; :class:`MechsafetyError` where it is none of ``kind``."""
    path = FILES.existing(path)
    with FILES.opened(path) as stored:
        facts = FILES.record(path, stored)
        found = facts["kind"]
    if found != kind:
        raise MechsafetyError(
            f"{str(path)!r} holds {found}, not {kind}: give it the name of a finished score file"
        )
    if kind == _KIND:
        facts["attribution"]["shapes"] = {k: tuple(v) for k, v in facts["attribution"]["shapes"].items()}
    return facts
