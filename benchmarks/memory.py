"""Peak memory of class means and of the sweep, each in a process of its own.

``python -m benchmarks.memory means 1000 1`` prints one measurement as JSON. Linux only: it reads the kernel's
own high-water mark (VmHWM), set back after loading and one warm-up prompt.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.options import MODEL, Options
from benchmarks.sections import Check, Section, table

_FEW, _MANY = 100, 1000
_GROWTH = 50.0  # MB: between two runs of one job the allocator alone differs by a few tens


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Megabytes: what imports hold, what they and the model hold, and the highest marks of loading and the job."""

    weights: float
    imports: float
    loaded: float
    loading_peak: float
    job_peak: float

    @property
    def total(self) -> float:
        return max(self.loading_peak, self.job_peak)

    @property
    def job(self) -> float:
        """What the job took above what imports and the model hold."""
        return self.job_peak - self.loaded


def measure(job: str, n: int, *, every: int) -> Peak:
    """Run ``means`` over ``n`` prompts, or a ``sweep`` of each ``every``-th layer with ``n`` of each label, here."""
    import torch
    import transformer_lens  # noqa: F401 - what a user's session holds before any model

    from benchmarks.caching import repeated
    from benchmarks.subjects import tuned_subject
    from mechsafety.directions.activations import residual_means, residual_stream
    from mechsafety.models.loading import generation_twin, load_model
    from mechsafety.prompts.prompt_set import load_prompts
    from mechsafety.sweeps.sweep import sweep

    imports = status("VmRSS")
    model = load_model(MODEL, device="cpu")
    prompts = load_prompts("default")
    subject = tuned_subject(model, prompts.validation, per_label=n) if job == "sweep" else None
    residual_stream(model, prompts[:1])
    loading_peak = status("VmHWM")
    reset_peak()
    loaded = status("VmRSS")
    if subject is None:
        residual_means(model, repeated(list(prompts[:_FEW]), n))
    else:
        layers = range(0, model.cfg.n_layers + 1, every)
        sweep(model, subject.directions, subject.prompts, refusal_tokens=subject.tokens, layers=layers)
    twin = generation_twin(model)
    assert isinstance(twin, torch.nn.Module)
    weights = sum(p.numel() * p.element_size() for p in twin.parameters()) / 1e6
    return Peak(
        weights=weights,
        imports=imports,
        loaded=loaded,
        loading_peak=loading_peak,
        job_peak=status("VmHWM"),
    )


def status(name: str) -> float:
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB", text, flags=re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def reset_peak() -> None:
    # Where the kernel does not allow it, the loading peak counts as the job's: too high, never too low.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def in_process(job: str, n: int, *, every: int = 1) -> Peak:
    """:func:`measure` in a fresh interpreter."""
    command = [sys.executable, "-m", "benchmarks.memory", job, str(n), str(every)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def section(options: Options) -> Section:
    """Peaks of ``residual_means`` at two numbers of prompts, and of the sweep."""
    per_label = options.size(32, 8)
    few, many = in_process("means", _FEW), in_process("means", options.size(_MANY, 2 * _FEW))
    swept = in_process("sweep", per_label, every=options.size(options.every, 15))
    bound = 1.5 * swept.weights + 1000
    growth = many.job - few.job
    names = {
        f"`residual_means`, {_FEW} prompts": few,
        f"`residual_means`, {options.size(_MANY, 2 * _FEW)} prompts": many,
        f"`sweep`, each {options.size(options.every, 15)}th layer, {per_label} + {per_label} prompts": swept,
    }
    rows = [
        [name, *(f"{v:.0f}" for v in (p.imports, p.loaded, p.job, p.job_peak, p.loading_peak))]
        for name, p in names.items()
    ]
    head = ["job (MB)", "imports hold", "imports and model hold", "job above that", "peak of the job"]
    return Section(
        name="memory",
        title="Memory",
        quick=options.quick,
        body="\n\n".join(
            [
                f"Resident memory by the kernel's own high-water mark, a fresh process each, {MODEL} "
                f"({swept.weights:.0f} MB of weights). The larger set of prompts is the smaller one repeated with a "
                "number after each text, so that the longest batch is as long. The last column is the peak before "
                "the job: loading, merging the adapter and, for the sweep, finding the directions.",
                table([*head, "peak before it"], rows),
            ]
        ),
        checks=(
            Check(
                what=f"memory of class means: {options.size(_MANY, 2 * _FEW)} prompts against {_FEW}",
                wanted=f"within {_GROWTH:.0f} MB",
                found=f"{growth:+.0f} MB",
                met=growth <= _GROWTH,
            ),
            Check(
                what="peak memory of the sweep above imports",
                wanted=f"below 1.5 x model + 1 GB = {bound:.0f} MB",
                found=f"{swept.job_peak - swept.imports:.0f} MB",
                met=swept.job_peak - swept.imports < bound,
            ),
            Check(
                what="peak memory of the sweep's process, imports and loading included",
                wanted=f"below {bound:.0f} MB",
                found=f"{swept.total:.0f} MB",
                met=swept.total < bound,
            ),
        ),
    )


def main() -> None:
    warnings.simplefilter("ignore")
    print(json.dumps(asdict(measure(sys.argv[1], int(sys.argv[2]), every=int(sys.argv[3])))))


if __name__ == "__main__":
    main()
