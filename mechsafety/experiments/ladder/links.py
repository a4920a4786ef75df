"""What a ladder's systems have to do with the other ways to find safety in weights: dW, and safety-critical regions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from mechsafety.anatomy.links import LINK_COLUMNS, direction_links, set_links
from mechsafety.anatomy.weight_changes import weight_changes
from mechsafety.core.arguments import as_path
from mechsafety.core.errors import MechsafetyError, way
from mechsafety.regions.score_files import Attribution
from mechsafety.runs.folder import RunFolder, read_run

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_SCORES = Path("scores") / "safety-0.safetensors"
_LINKS = "links.csv"


def read_regions(path: str | Path, systems: tuple[str, ...]) -> RunFolder:
    """A regions run of one of ``systems``.

    Raises :class:`MechsafetyError` for a folder that is no regions run, one of another model, and one that holds
    neither scores nor links.
    """
    path = as_path(path)
    run = read_run(path)
    config = run.manifest["config"]
    if config.get("kind") != "regions":
        raise MechsafetyError(
            f"{str(path)!r} is a run of kind {config.get('kind', 'study')!r}: {way('--regions', 'regions')} names a "
            f"folder that {way('mechsafety regions', 'ms.regions.run_regions')} made"
        )
    if config["model"] not in systems:
        raise MechsafetyError(
            f"the regions run {str(path)!r} is of {config['model']!r}, which is none of the systems: "
            f"{', '.join(systems)}"
        )
    if not (path / _SCORES).is_file() and not (path / _LINKS).is_file():
        raise MechsafetyError(
            f"the regions run {str(path)!r} holds neither scores nor links: did it finish? Run the same command again"
        )
    return run


def files_read(regions: RunFolder) -> list[Path]:
    """What links are made from, of a regions run."""
    return [path for name in (_SCORES, Path(_LINKS)) if (path := regions.path / name).is_file()]


def change_links(
    base: TransformerBridge,
    system: TransformerBridge,
    direction: Float[Tensor, " d_model"],
    *,
    regions: RunFolder | None,
    seed: int,
) -> pd.DataFrame:
    """dW = ``system`` - ``base`` beside the system's refusal direction and, of a regions run, its safety sets.

    Columns and rows: :func:`anatomy.links.direction_links` and, with the scores of ``regions``,
    :func:`set_links`. Raises :class:`MechsafetyError` for models of other maps, or that are the same.
    """
    changes = weight_changes(base, system)
    found = direction_links(changes, direction, seed=seed)
    if regions is None or not (regions.path / _SCORES).is_file():
        return found
    sets = set_links(changes, Attribution.open(regions.path / _SCORES))
    return pd.concat([found, sets], ignore_index=True)


def removal_links(regions: RunFolder) -> pd.DataFrame:
    """How much of what the weights removed in a regions run wrote to the stream lay on the refusal direction.

    By ``what``, for each method: ``removed_snip`` (or ``_wanda``, ``_actsvd``) and, of random removals of as many
    weights, ``removed_snip_random``, of as many and as large ones ``removed_snip_matched``; see
    :func:`direction_share`. ``chance`` is 1 / d_model, ``n`` calibration tokens. Columns:
    :data:`anatomy.links.LINK_COLUMNS`; no rows where the run has no links.
    """
    if not (regions.path / _LINKS).is_file():
        return pd.DataFrame(columns=list(LINK_COLUMNS))
    rows: list[tuple[object, ...]] = []
    for row in regions.read_table(_LINKS).itertuples():
        found = {"": row.share_removed_on_direction, "_random": row.random}
        found |= {"_matched": row.matched} if hasattr(row, "matched") else {}
        for what, value in found.items():
            name = f"removed_{row.method}{what}"
            rows.append((name, row.layer, row.kind, value, math.nan, math.nan, row.chance, row.n))
    return pd.DataFrame(rows, columns=list(LINK_COLUMNS))
