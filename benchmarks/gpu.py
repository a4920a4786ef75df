"""The same races on an accelerator, with random weights of larger models' shapes in bfloat16."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks import caching, generation, sweeps
from benchmarks.options import Options
from benchmarks.sections import Section, table
from benchmarks.subjects import Subject, random_llama, random_subject
from benchmarks.timing import in_turns
from mechsafety.core.errors import first_lines
from mechsafety.edits.interventions import Ablate
from mechsafety.generation.completions import generate
from mechsafety.models.chat import device_of
from mechsafety.models.loading import generation_twin
from mechsafety.prompts.prompt_set import load_prompts

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
_TINY: dict[str, dict[str, Any]] = {
    "tiny": {"num_hidden_layers": 4, "vocab_size": 60000, "tie_word_embeddings": False},
}
_BATCH = 50


def section(options: Options) -> Section | None:
    """Rows by shape; None where ``options.device`` is the CPU (but a quick run tries the code on it)."""
    if torch.device(options.device).type != "cuda" and not options.quick:
        return None
    rows: list[list[str]] = []
    notes: list[str] = []
    for name, shape in (_TINY if options.quick else SHAPES).items():
        with random_llama(dtype="bfloat16", device=options.device, **shape) as model:
            subject = random_subject(model, per_label=options.size(32, 8))
            rows.append([name, *_raced(subject, options), *_generated(subject, options, notes)])
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU (a try of the code)"
    head = ["shape", "sweep / released order", "caching / bare pass", "edited tokens/s", "plain, unedited"]
    head += ["plain, static cache", "bound by memory"]
    text = [
        f"On {hardware}, random weights, bfloat16. Generation: {options.prompts} prompts, {options.new_tokens} new "
        f"tokens, batch {_BATCH}; the static cache is Hugging Face's, compiled where it compiles. The bound is batch "
        "size x bandwidth of a copy on the device / bytes of the weights: prefill, keys and values come on top.",
        table(head, rows),
        *notes,
    ]
    return Section(name="gpu", title="On a GPU", body="\n\n".join(text), quick=options.quick)


def _raced(subject: Subject, options: Options) -> list[str]:
    layers = sweeps.spread_layers(subject.model.cfg.n_layers, subject.model.cfg.n_layers // 2)
    prompts = caching.many_prompts(options.size(500, 70))
    for rounds in (1, options.rounds):  # the first warms
        swept = sweeps.race(subject, subject.prompts, layers=layers, few=3, rounds=rounds)
        cached = caching.race(subject.model, prompts, rounds=rounds)
    return [str(swept.ratio(sweeps.OURS, sweeps.THEIRS)), str(cached.ratio(caching.OURS, caching.BARE))]


def _generated(subject: Subject, options: Options, notes: list[str]) -> list[str]:
    model, n = subject.model, options.new_tokens
    half = max(1, options.prompts // 2)
    split = load_prompts("default").report
    report = [*split.harmful[:half], *split.harmless[:half]]
    texts = [p.text for p in report]
    edit = Ablate(subject.directions.at(layer=model.cfg.n_layers // 2))

    def ours() -> float:
        done = generate(model, report, edit=edit, max_new_tokens=n, seed=0, batch_size=_BATCH)
        return sum(c.n_tokens for c in done)

    def plain(**more: Any) -> int:
        return generation.hugging_face(model, texts, batch_size=_BATCH, new_tokens=n, **more)

    jobs = {"ours": ours, "plain": plain, "static": lambda: plain(cache_implementation="static")}
    try:
        jobs["static"]()  # compiles where it can
    except Exception as error:  # a missing compiler must not lose the other rows
        del jobs["static"]
        notes.append(f"The static cache did not run: {first_lines(error)}")
    in_turns(jobs, rounds=1)
    turns = in_turns(jobs, rounds=options.rounds)
    weights = sum(p.numel() * p.element_size() for p in _parameters(model))
    bound = min(_BATCH, len(report)) * copy_bandwidth(device_of(model), options.size(2**30, 2**26)) / weights
    return [
        *(f"{turns.rate(k):.0f}" if k in jobs else "–" for k in ("ours", "plain", "static")),
        f"{bound:.0f}",
    ]


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
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * n_bytes / (time.perf_counter() - started))
    return best
