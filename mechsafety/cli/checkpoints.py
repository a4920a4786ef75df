"""Checkpoints: is it the same refusal?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mechsafety.cli.base import (
    Shown,
    command,
    date_option,
    device_option,
    dtype_option,
    other_versions_option,
    records,
    say,
    template_option,
)
from mechsafety.core.errors import MechsafetyError

_TEXT_COLUMNS = {
    "cosines": ["a", "b", "cosine", "low", "high", "ceiling", "corrected", "harmless_floor", "random_high"],
    "angles": ["a", "b", "index", "angle", "low", "high", "ceiling_a", "ceiling_b", "random_low"],
    "cka": ["a", "b", "cka", "low", "high", "class_floor", "floor_high", "next_layer_a", "next_layer_b"],
    "transfer": ["layer", "source", "target", "base", "drop", "low", "high", "share", "kl", "random_max"],
}  # fmt: skip


@command(
    "compare", example="mechsafety compare smollm2-135m smollm2-135m+refusals --limit 64 --out runs/rungs"
)
@click.argument("checkpoints", nargs=-1, metavar="MODEL MODEL...")
@click.option(
    "--prompts",
    default="default",
    show_default=True,
    metavar="SET",
    help="Fit, validation and report prompts.",
)
@click.option(
    "--measure",
    "measures",
    multiple=True,
    metavar="NAME",
    help="cosine, angles, cka or transfer; may be repeated [default: all that can be had].",
)
@click.option(
    "--layer", type=int, default=None, metavar="L", help="Ablate and show this layer [default: the one that "
    "separates held-out prompts best].",
)  # fmt: skip
@click.option("--limit", type=int, default=None, metavar="N", help="At most N prompts of each label.")
@click.option("--k", type=int, default=3, show_default=True, help="Dimensions of the refusal subspace.")
@click.option("--resamples", type=int, default=300, show_default=True, help="Of the bootstrap over prompts.")
@click.option("--position", type=int, default=-1, show_default=True, help="Offset from the prompt's end.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Run folder [default: runs/compare]."
)
@click.option(
    "--format", "form", default="html", show_default=True, metavar="html|png|pdf|svg", help="Of figures."
)
@click.option("--seed", type=int, default=0, show_default=True)
@template_option
@date_option
@dtype_option
@device_option
@other_versions_option
def _compare(
    checkpoints: tuple[str, ...],
    prompts: str,
    measures: tuple[Any, ...],
    layer: int | None,
    limit: int | None,
    k: int,
    resamples: int,
    position: int,
    out: Path | None,
    form: Any,
    seed: int,
    template: str | None,
    date: str | None,
    dtype: str | None,
    device: str | None,
    allow_other_versions: bool,
) -> Shown:
    """Compare refusal across checkpoints: cosines, principal angles, CKA, and transfer of directions.

    A MODEL may be a base, BASE+ADAPTER, REPO@REVISION, or a .safetensors file of saved directions (cosines
    only). Models of separate origin share no residual basis; for them only CKA is given. An interrupted
    comparison goes on when the same command runs again.
    """
    from mechsafety.experiments.comparison.comparison import at_layer, compare
    from mechsafety.pages.page import FORMATS, write_figures
    from mechsafety.prompts.prompt_set import load_prompts

    if form not in FORMATS:
        raise MechsafetyError(f"figure format {form!r} is not one of {', '.join(FORMATS)}")
    found = compare(
        checkpoints,
        load_prompts(prompts),
        out=out or Path("runs") / "compare",
        seed=seed,
        measures=measures or None,
        layer=layer,
        position=position,
        k=k,
        limit=limit,
        resamples=resamples,
        dtype=dtype or "auto",
        device=device or "auto",
        template=template,
        date=date,
        say=say,
        allow_other_versions=allow_other_versions,
    )
    figures = write_figures(found.figures(), found.path / "figures", form=form)
    shown = {name: at_layer(name, table, found.layer) for name, table in found.tables.items()}
    facts = {
        "run": str(found.path),
        "layer": found.layer,
        "notes": list(found.notes),
        "bases": [{"a": b.a, "b": b.b, "verdict": b.verdict, "reason": b.reason} for b in found.bases],
        "figures": [str(path) for path in figures],
        **{name: records(table) for name, table in shown.items()},
    }
    blocks = [
        f"{name}" + ("" if name == "transfer" else f", layer {found.layer}") + "\n"
        + table[_TEXT_COLUMNS[name]].to_string(index=False, na_rep="-")
        for name, table in shown.items()
    ]  # fmt: skip
    models = [name for name in found.names if ".safetensors" not in name]
    then = (
        f"mechsafety study --systems {','.join(models)} --out runs/compared"
        if models
        else "mechsafety compare with the models themselves, for intervals, angles, CKA and transfer"
    )
    tail = f"run:     {found.path}\nfigures: {found.path / 'figures'}\nnext:    {then}"
    return facts, "\n\n".join([*blocks, *found.notes, tail])
