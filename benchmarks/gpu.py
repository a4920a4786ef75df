"""One run of at most ten minutes on one GPU: random weights of larger models' shapes in bfloat16.

``python -m benchmarks.gpu --out gpu.json`` prints a Markdown table and writes all numbers with hardware, versions and
date. ``--small`` runs every line of it on the CPU with tiny shapes. Random weights do not end answers, so that
every answer has its full length.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import generation
from benchmarks.options import Options
from benchmarks.sections import Section, machine, table
from benchmarks.subjects import Subject, random_llama, random_subject
from mechsafety.core.days import today
from mechsafety.core.errors import first_lines
from mechsafety.edits.interventions import Ablate
from mechsafety.generation.answers import Example
from mechsafety.generation.completions import generate
from mechsafety.models.chat import device_of
from mechsafety.models.loading import generation_twin
from mechsafety.prompts.prompt_set import load_prompts
from mechsafety.regions.attribution import score_weights
from mechsafety.sweeps.sweep import sweep

SHAPES: dict[str, dict[str, Any]] = {
    "SmolLM2-1.7B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 64,
    },
    "Llama-3-8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
}
SMALL: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "tie_word_embeddings": False,
    },
}
GOALS = {"edited / static cache": 1.0, "share of the bound, batch 1": 0.5}
"""Edited generation is as fast as Hugging Face's own with a static cache, and reaches half of what memory allows."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What each measurement does, and the ``seconds`` after which no further one begins."""

    new_tokens: int = 128
    many: int = 64
    per_label: int = 16
    layers: int = 4
    examples: int = 16
    copied: int = 2**30
    seconds: float = 540.0


SMALL_SIZES = Sizes(new_tokens=6, many=4, per_label=4, layers=1, examples=2, copied=2**22)


@dataclass(kw_only=True)
class Shape:
    """What was found of one shape; ``failed`` holds one line for each measurement that did not run."""

    name: str
    found: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def measure(self, what: str, job: Callable[[], Mapping[str, float]], until: float) -> None:
        """Add the numbers of ``job``, unless the time is up; an error loses its own numbers alone."""
        if time.perf_counter() > until:
            self.failed[what] = "not begun: the time was up"
            return
        try:
            self.found |= job()
        except Exception as error:  # a missing compiler, too little memory
            self.failed[what] = first_lines(error)


def measure(shapes: Mapping[str, Mapping[str, Any]], sizes: Sizes, device: str) -> dict[str, Any]:
    """All numbers of all ``shapes``, with the machine and the day they were measured on."""
    until = time.perf_counter() + sizes.seconds
    measured = [_shape(name, shape, sizes, device, until) for name, shape in shapes.items()]
    return {
        "date": today(),
        "machine": machine(),
        "device": device,
        "ran_on_a_gpu": torch.device(device).type == "cuda",
        "sizes": asdict(sizes),
        "goals": GOALS,
        "shapes": [asdict(one) for one in measured],
    }


def _shape(name: str, shape: Mapping[str, Any], sizes: Sizes, device: str, until: float) -> Shape:
    made = Shape(name=name)
    with random_llama(dtype="bfloat16", device=device, **shape) as model:
        subject = random_subject(model, per_label=sizes.per_label)
        edit = Ablate(subject.directions.at(layer=model.cfg.n_layers // 2))
        with _peak(made, device_of(model)):
            made.measure("static cache", lambda: _static(model, sizes.many, sizes), until)
            for rows in (1, sizes.many):
                made.measure(f"batch {rows}", lambda rows=rows: _edited(model, edit, rows, sizes), until)
            made.measure("sweep", lambda: _swept(subject, sizes), until)
            made.measure("attribution", lambda: _attributed(model, sizes), until)
    if {"edited, tokens/s at many", "static cache, tokens/s"} <= set(made.found):
        made.found["edited / static cache"] = (
            made.found["edited, tokens/s at many"] / made.found["static cache, tokens/s"]
        )
    return made


@contextmanager
def _peak(made: Shape, device: torch.device) -> Iterator[None]:
    """The most that tensors held at once while the block ran; unknown on the CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield
    if device.type == "cuda":
        made.found["peak memory, GB"] = torch.cuda.max_memory_allocated(device) / 1e9


def seconds_of(job: Callable[[], object], device: torch.device) -> float:
    """How long ``job`` takes, after one call that warms up, with what the device still does at its end."""
    took = 0.0
    for _ in range(2):
        _wait(device)
        started = time.perf_counter()
        job()
        _wait(device)
        took = time.perf_counter() - started
    return took


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _report(n: int) -> list[Any]:
    split = load_prompts("default").report
    prompts = [*split.harmful, *split.harmless]
    return (prompts * (n // len(prompts) + 1))[:n]


def _edited(model: Any, edit: Ablate, rows: int, sizes: Sizes) -> dict[str, float]:
    prompts = _report(rows)

    def job() -> None:
        generate(model, prompts, edit=edit, max_new_tokens=sizes.new_tokens, batch_size=rows, progress=False)

    took = seconds_of(job, device_of(model))
    done = generate(
        model, prompts, edit=edit, max_new_tokens=sizes.new_tokens, batch_size=rows, progress=False
    )
    rate = sum(c.n_tokens for c in done) / took
    weights = sum(p.numel() * p.element_size() for p in _parameters(model))
    bound = rows * copy_bandwidth(device_of(model), sizes.copied) / weights
    name = "1" if rows == 1 else "many"
    return {f"edited, tokens/s at {name}": rate, f"share of the bound, batch {name}": rate / bound}


def _static(model: Any, rows: int, sizes: Sizes) -> dict[str, float]:
    texts = [p.text for p in _report(rows)]
    made = 0

    def job() -> None:
        nonlocal made
        made = generation.hugging_face(
            model, texts, batch_size=rows, new_tokens=sizes.new_tokens, cache_implementation="static"
        )

    return {"static cache, tokens/s": made / took if (took := seconds_of(job, device_of(model))) else 0.0}


def _swept(subject: Subject, sizes: Sizes) -> dict[str, float]:
    n_layers = subject.model.cfg.n_layers
    # Not the embeddings: the last token is that of the template, and has one for every prompt.
    layers = tuple(range(1, n_layers, max(1, n_layers // sizes.layers)))[: sizes.layers]
    directions, scored = subject.at_last_position(), 0

    def job() -> None:
        nonlocal scored
        table = sweep(
            subject.model,
            directions,
            subject.prompts,
            refusal_tokens=subject.tokens,
            layers=layers,
            progress=False,
        )
        scored = len(table.to_frame())

    took = seconds_of(job, device_of(subject.model))
    return {"sweep, candidates/s": scored / took}


def _attributed(model: Any, sizes: Sizes) -> dict[str, float]:
    answer = "Here is what to do first, and then what comes after it. " * 4
    examples = [Example(prompt=p.text, answer=answer, whole=True) for p in _report(sizes.examples)]
    took = seconds_of(lambda: score_weights(model, examples), device_of(model))
    return {"attribution, examples/s": len(examples) / took}


def _parameters(model: Any) -> Any:
    twin = generation_twin(model)
    assert twin is not None
    return twin.parameters()


def copy_bandwidth(device: torch.device, n_bytes: int) -> float:
    """Bytes read and written per second by a copy on the device; the best of ten."""
    source = torch.ones(n_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(10):
        started = time.perf_counter()
        target.copy_(source)
        _wait(device)
        best = max(best, 2 * n_bytes / (time.perf_counter() - started))
    return best


# -- what is shown --------------------------------------------------------------------------------------

_ROWS = (
    "edited, tokens/s at 1",
    "share of the bound, batch 1",
    "edited, tokens/s at many",
    "share of the bound, batch many",
    "static cache, tokens/s",
    "edited / static cache",
    "sweep, candidates/s",
    "attribution, examples/s",
    "peak memory, GB",
)


def text(measured: Mapping[str, Any]) -> str:
    """The numbers as a Markdown table, a column for each shape, with the goals."""
    shapes, sizes = measured["shapes"], measured["sizes"]
    rows = []
    for name in _ROWS:
        goal = measured["goals"].get(name)
        found = [f"{shape['found'][name]:.3g}" if name in shape["found"] else "–" for shape in shapes]
        rows.append([name, *found, "" if goal is None else f"{goal:g} or more"])
    where = "On a GPU" if measured["ran_on_a_gpu"] else "Not on a GPU (a try of the code)"
    lines = [
        f"{where}, {measured['date']}: {measured['machine']}. Random weights, bfloat16, {sizes['new_tokens']} new "
        f"tokens; batch many is {sizes['many']}. The bound is batch size x bandwidth of a copy on the device / "
        "bytes of the weights: prefill, keys and values come on top.",
        table(["", *(shape["name"] for shape in shapes), "goal"], rows),
        *(f"{s['name']}: {what} did not run: {why}" for s in shapes for what, why in s["failed"].items()),
    ]
    return "\n\n".join(lines)


def section(options: Options) -> Section | None:
    """The page's section; None where ``options.device`` is the CPU (but a quick run tries the code on it)."""
    if torch.device(options.device).type != "cuda" and not options.quick:
        return None
    shapes, sizes = (SMALL, SMALL_SIZES) if options.quick else (SHAPES, Sizes())
    body = text(measure(shapes, sizes, options.device))
    return Section(name="gpu", title="On a GPU", body=body, quick=options.quick)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--small", action="store_true", help="tiny shapes, on any device")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=None, help="where all numbers are written (JSON)")
    given = parser.parse_args()
    if not given.small and torch.device(given.device).type != "cuda":
        raise SystemExit("no GPU here: --small tries the code on the CPU")
    shapes, sizes = (SMALL, SMALL_SIZES) if given.small else (SHAPES, Sizes())
    measured = measure(shapes, sizes, given.device)
    if given.out is not None:
        given.out.write_text(json.dumps(measured, indent=1))
    print(text(measured))


if __name__ == "__main__":
    main()
