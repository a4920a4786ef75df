"""Scores of every linear map: one pass against one full-model pass a layer, and their memory.

``python -m benchmarks.regions FILE`` prints one measurement of memory as JSON; FILE holds the examples. Linux only,
as :mod:`benchmarks.memory`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import reset_peak, status
from benchmarks.options import MODEL, Options
from benchmarks.sections import Check, Section, table
from benchmarks.timing import in_turns
from mechsafety.generation.answers import Encoded, Example, encode
from mechsafety.models.loading import load_model
from mechsafety.prompts.prompt_set import load_prompts
from mechsafety.regions.attribution import DEFAULT_BATCH, score_weights
from mechsafety.regions.examples import Kind
from mechsafety.regions.maps import LinearMap, linear_maps, running_body
from mechsafety.regions.memory_plan import memory_plan
from mechsafety.regions.own_examples import examples_from_model

_LAYERS = (
    3  # of the layer-by-layer procedure: first, middle and last, since the backward pass ends at the layer
)
_FEW = 4  # examples for each of them
_SECONDS = 240.0
_SPEED = 10.0


def section(options: Options) -> Section:
    """Seconds for both sets of examples, the ratio to a pass a layer, and the peak of memory."""
    model = load_model(MODEL, device="cpu")
    n = options.size(128, 4)
    sets = _examples(model, n=n, new_tokens=options.new_tokens)
    maps = linear_maps(model)
    depth = model.cfg.n_layers
    layers = sorted({round(i * (depth - 1) / (_LAYERS - 1)) for i in range(_LAYERS)})
    few = [pair for examples in sets.values() for pair in encode(model, examples[: _FEW // len(sets)])]
    seconds: list[float] = []

    def one_pass() -> float:
        started = time.perf_counter()
        for examples in sets.values():
            score_weights(model, examples)
        seconds.append(time.perf_counter() - started)
        return sum(len(examples) for examples in sets.values()) * depth

    def layer_by_layer() -> float:
        for layer in layers:
            _of_layer(running_body(model), [m for m in maps if m.layer == layer], few)
        return len(layers) * len(few)

    turns = in_turns(
        {"one pass": one_pass, "a pass a layer": layer_by_layer}, rounds=options.size(options.rounds, 1)
    )
    ratio = turns.ratio("one pass", "a pass a layer")
    whole = sum(len(examples) for examples in sets.values())
    median = whole * depth / turns.rate("one pass")
    scaled = whole * depth / turns.rate("a pass a layer")
    lengths = [len(p) + len(a) for examples in sets.values() for p, a in encode(model, examples)]
    plan = memory_plan(MODEL, device="cpu", batch_size=DEFAULT_BATCH, tokens=max(lengths))
    peak = _in_process(sets["safety"])
    held = (plan.scores + plan.grams) / 1e6
    bound = held + plan.batch / 1e6
    return Section(
        name="regions",
        title="Scores of every linear map",
        quick=options.quick,
        body="\n\n".join(
            [
                f"SNIP and Wanda scores and the Gram matrices of {len(maps)} linear maps "
                f"({plan.scores // 4 / 1e6:.0f} M weights) of {MODEL}, {n} safety and {n} utility examples "
                f"of {sum(lengths) / len(lengths):.0f} tokens on average, the model's own answers of at most "
                f"{options.new_tokens} tokens. The released procedure "
                "runs the whole model over all examples anew for each layer: forward for Wanda, forward and backward "
                f"for SNIP, one example at a time. It was timed in the same run on layers "
                f"{', '.join(map(str, layers))} and {len(few)} examples, and scaled.",
                table(
                    ["", "layers x examples per second", "both sets"],
                    [
                        ["one pass", f"{turns.rate('one pass'):.1f}", f"{median:.0f} s"],
                        ["a pass a layer", f"{turns.rate('a pass a layer'):.1f}", f"{scaled:.0f} s (scaled)"],
                    ],
                ),
                "Memory by the kernel's own high-water mark, in a fresh process, above what imports and the model "
                f"hold: {peak['job_peak'] - peak['loaded']:.0f} MB, of which scores {plan.scores / 1e6:.0f} MB, Gram "
                f"matrices of {plan.n_sites} sites {plan.grams / 1e6:.0f} MB.",
            ]
        ),
        checks=(
            Check(
                what=f"all scores of {n} + {n} examples",
                wanted=f"below {_SECONDS:.0f} s on 2 cores",
                found=f"{median:.0f} s ({min(seconds):.0f} to {max(seconds):.0f})",
                met=None if options.quick else median < _SECONDS,
            ),
            Check(
                what="all scores against a full-model pass a layer",
                wanted=f"at least {_SPEED:.0f}x",
                found=str(ratio),
                met=ratio.median >= _SPEED,
            ),
            Check(
                what="peak memory above imports and model",
                wanted=f"scores, one Gram matrix a site and a batch of {DEFAULT_BATCH}: {bound:.0f} MB",
                found=f"{peak['job_peak'] - peak['loaded']:.0f} MB",
                met=peak["job_peak"] - peak["loaded"] <= bound,
            ),
        ),
    )


def _examples(model: Any, *, n: int, new_tokens: int) -> dict[str, list[Example]]:
    fit = load_prompts("default").fit
    kinds: tuple[Kind, ...] = ("safety", "utility")
    return {
        kind: examples_from_model(model, fit, kind=kind, n=n, max_new_tokens=new_tokens, seed=0)
        for kind in kinds
    }


def _of_layer(body: Any, maps: Sequence[LinearMap], examples: Sequence[Encoded]) -> None:
    """One layer's scores as the released code orders the work: every example through the whole model, twice."""
    modules = list({id(m.module): m.module for m in maps}.values())
    squares: dict[int, torch.Tensor] = {}

    def before(module: Any, args: tuple[Any, ...]) -> None:
        norms = args[0][0].float().square().sum(0)
        squares[id(module)] = squares.get(id(module), 0) + norms

    handles = [module.register_forward_pre_hook(before) for module in modules]
    with torch.no_grad():
        for prompt, answer in examples:
            body(input_ids=torch.tensor([prompt + answer]), use_cache=False)
    for handle in handles:
        handle.remove()
    weights: list[Any] = [module.weight for module in modules]
    sums = [torch.zeros(w.shape) for w in weights]
    for w in weights:
        w.requires_grad_(True)
    for prompt, answer in examples:
        logits = body(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0]
        predicted = logits[len(prompt) - 1 : -1].float()
        torch.nn.functional.cross_entropy(predicted, torch.tensor(answer)).backward()
        for w, total in zip(weights, sums, strict=True):
            total += (w.detach() * w.grad).abs()
            w.grad = None
    for w in weights:
        w.requires_grad_(False)


def _in_process(examples: Sequence[Example]) -> dict[str, float]:
    """Megabytes of :func:`measure` in a fresh interpreter."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "examples.json"
        file.write_text(json.dumps([asdict(example) for example in examples]))
        command = [sys.executable, "-m", "benchmarks.regions", str(file)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(examples: Sequence[Example]) -> dict[str, float]:
    """Megabytes that imports and the model hold, and the high-water mark of the scores."""
    model = load_model(MODEL, device="cpu")
    running_body(model)(input_ids=torch.zeros((1, 8), dtype=torch.long))
    reset_peak()
    loaded = status("VmRSS")
    score_weights(model, examples)
    return {"loaded": loaded, "job_peak": status("VmHWM")}


def main() -> None:
    warnings.simplefilter("ignore")
    examples = [Example(**stored) for stored in json.loads(Path(sys.argv[1]).read_text())]
    print(json.dumps(measure(examples)))


if __name__ == "__main__":
    main()
