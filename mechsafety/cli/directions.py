"""Directions of one model: find them, sweep them, select one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mechsafety.cli.base import Shown, command, device_option, dtype_option, records, say, template_option
from mechsafety.errors import MechsafetyError


@command("direction", example="mechsafety direction smollm2-135m+refusals --out directions.safetensors")
@click.argument("model")
@click.option(
    "--prompts", default="default", show_default=True, metavar="SET", help="Fit and validation prompts."
)
@click.option(
    "--direction",
    "method",
    type=click.Choice(["mean_difference", "pca"]),
    default="mean_difference",
    show_default=True,
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Where to save them (safetensors)."
)
@click.option("--seed", type=int, default=0, show_default=True)
@template_option
@dtype_option
@device_option
def _direction(
    model: str,
    prompts: str,
    method: Any,
    out: Path | None,
    seed: int,
    template: str | None,
    dtype: str | None,
    device: str | None,
) -> Shown:
    """Find refusal directions of MODEL at every layer, and select one."""
    if out is not None and not out.parent.is_dir():
        raise MechsafetyError(f"folder {str(out.parent)!r} does not exist")
    from mechsafety.activations import residual_stream
    from mechsafety.directions import find_directions
    from mechsafety.models import load_model
    from mechsafety.prompts import load_prompts
    from mechsafety.sweeps import sweep

    chosen = load_prompts(prompts)
    loaded = load_model(model, dtype=dtype or "auto", device=device or "auto", template=template)
    say("residual streams")
    found = find_directions(residual_stream(loaded, chosen.fit), method=method, seed=seed)
    if out is not None:
        found.save(out)
    say("layer sweep")
    swept = sweep(loaded, found, chosen.validation.sample(32, seed=seed))
    try:
        explanation = swept.select().explain()
        selected: Any = vars(swept.select())
    except MechsafetyError as error:
        explanation, selected = str(error), None
    table = swept.table.round(3).to_string(index=False)
    facts = {
        "scores": records(swept.table),
        "selected": selected,
        "refusal_tokens": list(swept.refusal_tokens.texts),
        "out": str(out) if out else None,
    }
    return facts, f"{table}\n\n{explanation}" + (f"\ndirections: {out}" if out else "")
