"""The table of freezing: what benign fine-tuning leaves of refusals, with a set of weights protected or not."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import bar
from mechsafety.generation.answers import Example
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.models.chat_settings import chat_bound
from mechsafety.models.loading import current_fingerprint, model_name
from mechsafety.regions.maps import LinearMap, linear_maps
from mechsafety.regions.removal import Pruning, require_made_for
from mechsafety.robustness.finetuning import Finetuned, FinetuneRecipe, drawn, finetuned
from mechsafety.runs.folder import finite
from mechsafety.runs.journal import Journal

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

Mode = Literal["none", "freeze", "rewind"]
MODES: tuple[Mode, ...] = get_args(Mode)


def freezing_table(
    model: ModelLike,
    examples: Sequence[Example],
    *,
    sets: Mapping[str, Pruning],
    measure: Callable[[TransformerBridge], Mapping[str, float]],
    seeds: Sequence[int],
    recipe: FinetuneRecipe | None = None,
    n_examples: Sequence[int] = (10, 50, 100),
    modes: Sequence[Mode] = MODES,
    journal: Journal | None = None,
    starting: Callable[[Mapping[str, Any]], None] = lambda _: None,
) -> pd.DataFrame:
    """``measure`` of the model before and after fine-tuning on benign examples, one row per state of the model.

    The first row is the model as it is (``n_examples`` 0). Then, for each number of examples and seed: nothing
    protected (mode and frozen ``none``), and each of ``sets`` under each other mode. A seed draws and orders the
    examples, the same ones in every mode. A random set of the same size beside a safety set is its control.

    Columns: mode (none | freeze | rewind), frozen (the set's name), frozen_share (its share of all weights of the
    maps), n_examples, seed, loss_first, loss_last (mean over the first and the last epoch, nats an answer token; NaN
    in the first row), and what ``measure`` returned. ``journal`` keeps finished rows; ``starting`` receives each other
    row's state before it is measured.

    Raises :class:`MechsafetyError` before anything is trained: for a number of examples that is not there, no seed
    or mode, repeated ones, and a set made for another model.

    Arguments:
        examples: Benign examples, of examples_from_model.
        seeds: One fine-tuning each.
        recipe: How the model is fine-tuned.
        modes: none, freeze (weights kept in training) and rewind (put back after it).

    Returns:
        One row per state of the model.

    Example:
        >>> top = ms.regions.top_pruning(maps, safety, method="snip", q=5)
        >>> def measure(model):
        ...     return {"likeliest": float(ms.log_probs(model, prompts.report).max())}
        >>> table = ms.regions.freezing_table(
        ...     model, examples, sets={"safety": top}, measure=measure, seeds=0, n_examples=2, modes=("none", "freeze"),
        ... )
        >>> table[["mode", "frozen", "n_examples"]]
             mode  frozen  n_examples
        0    none    none           0
        1    none    none           2
        2  freeze  safety           2
    """
    model = as_model(model)
    import pandas as pd

    for name, given in (("seeds", seeds), ("n_examples", n_examples), ("modes", modes)):
        if not given or len(set(given)) < len(given):
            raise MechsafetyError(f"{name} is {list(given)}: give one at least, and none twice")
    for n in n_examples:
        drawn(examples, n, seed=seeds[0])
    maps = linear_maps(model)
    for weights in sets.values():
        require_made_for(weights, maps, model_name(model))
    bench = _FreezingRun(
        model=model,
        maps=maps,
        examples=examples,
        recipe=recipe or FinetuneRecipe(),
        sets=sets,
        measure=measure,
        journal=journal,
        starting=starting,
    )
    if journal is not None:
        journal.bind(
            model=current_fingerprint(model),
            **chat_bound(model),
            recipe=bench.recipe,
            examples=hashlib.sha256(repr(list(examples)).encode()).hexdigest(),
            measure=getattr(measure, "__qualname__", type(measure).__qualname__),
        )
    rows = [bench.untouched()]
    with bar("freezing", total=len(n_examples) * len(seeds), unit="attack") as progress:
        for n in n_examples:
            for seed in seeds:
                rows += bench.attacked(n, seed, modes)
                progress.update(1)
    return pd.DataFrame(rows).astype({"seed": "Int64"})


@dataclass(frozen=True, kw_only=True, eq=False)
class _FreezingRun:
    """One model, its sets and its measure, and the rows that are done already."""

    model: TransformerBridge
    maps: Sequence[LinearMap]
    examples: Sequence[Example]
    recipe: FinetuneRecipe
    sets: Mapping[str, Pruning]
    measure: Callable[[TransformerBridge], Mapping[str, float]]
    journal: Journal | None
    starting: Callable[[Mapping[str, Any]], None]

    def untouched(self) -> dict[str, Any]:
        row = self._row("none", None, 0, None)
        return self._stored(row) or self._measured(row, None)

    def attacked(self, n: int, seed: int, modes: Sequence[Mode]) -> list[dict[str, Any]]:
        """The rows of one draw of examples, in the order of ``modes`` and sets."""
        rows = [
            self._row(mode, name, n, seed)
            for mode in modes
            for name in ([None] if mode == "none" else self.sets)
        ]
        done = [self._stored(row) for row in rows]
        # One ordinary fine-tuning serves the unprotected row and every rewound one.
        for frozen in (None, *(self.sets if "freeze" in modes else ())):
            todo = [
                i
                for i, row in enumerate(rows)
                if done[i] is None and (row["frozen"] if row["mode"] == "freeze" else None) == frozen
            ]
            if todo:
                with self._finetuned(n, seed, frozen) as result:
                    for i in todo:
                        again = self.sets[rows[i]["frozen"]] if rows[i]["mode"] == "rewind" else None
                        with result.rewound(again) if again is not None else nullcontext():
                            done[i] = self._measured(rows[i], result)
        return [row for row in done if row is not None]

    def _finetuned(self, n: int, seed: int, frozen: str | None) -> AbstractContextManager[Finetuned]:
        return finetuned(
            self.model,
            drawn(self.examples, n, seed=seed),
            recipe=self.recipe,
            frozen=self.sets[frozen] if frozen is not None else None,
            seed=seed,
            maps=self.maps,
        )

    def _row(self, mode: Mode, name: str | None, n: int, seed: int | None) -> dict[str, Any]:
        return {
            "mode": mode,
            "frozen": name if name is not None else "none",
            "frozen_share": self.sets[name].sparsity if name is not None else 0.0,
            "n_examples": n,
            "seed": seed,
        }

    def _measured(self, row: dict[str, Any], result: Finetuned | None) -> dict[str, Any]:
        self.starting(row)
        losses = result.losses if result is not None else ()
        an_epoch = len(losses) // self.recipe.epochs
        values = {
            "loss_first": sum(losses[:an_epoch]) / an_epoch if losses else math.nan,
            "loss_last": sum(losses[-an_epoch:]) / an_epoch if losses else math.nan,
            **self.measure(self.model),
        }
        if self.journal is not None:
            self.journal.put(self._key(row), finite(values))
        return row | values

    def _stored(self, row: dict[str, Any]) -> dict[str, Any] | None:
        values = self.journal.get(self._key(row)) if self.journal is not None else None
        if values is None:
            return None
        return row | {name: math.nan if value is None else value for name, value in values.items()}

    def _key(self, row: Mapping[str, Any]) -> str:
        """A row by its set's weights, not by the name alone."""
        key = [row["mode"], row["frozen"], row["n_examples"], row["seed"]]
        return json.dumps([*key, _digest(self.sets[row["frozen"]])] if row["mode"] != "none" else key)


def _digest(weights: Pruning) -> str:
    digest = hashlib.sha256()
    for name, places in sorted(weights.entries.items()):
        digest.update(name.encode() + places.cpu().long().contiguous().numpy().tobytes())
    return digest.hexdigest()
