"""Kinds of cache that transformers offers for generation: does our own path gain by one of them?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import generation
from benchmarks.options import MODEL, Options
from benchmarks.sections import Section, table
from benchmarks.timing import in_turns
from mechsafety.core.errors import first_lines
from mechsafety.generation.completions import generate
from mechsafety.models.chat import tokenize_prompts
from mechsafety.models.loading import generation_twin, load_model
from mechsafety.prompts.prompt_set import load_prompts

OURS, DYNAMIC, STATIC = "mechsafety", "Hugging Face, dynamic cache", "Hugging Face, static cache"
CONTINUOUS = "Hugging Face, continuous batching"


def continuous(model: Any, texts: list[str], *, new_tokens: int) -> int:
    """Tokens made by transformers' own continuous batching, in which rows that end make room for others."""
    from transformers import GenerationConfig

    plain: Any = generation_twin(model)
    config = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, eos_token_id=plain.generation_config.eos_token_id
    )
    done = plain.generate_batch(tokenize_prompts(model, texts), generation_config=config)
    return sum(len(one.generated_tokens) for one in done.values())


def section(options: Options) -> Section:
    """Tokens per second of unedited greedy answers under each kind of cache, in turns."""
    split = load_prompts("default").report
    half = max(1, options.prompts // 2)
    report = [*split.harmful[:half], *split.harmless[:half]]
    texts, n, model = [p.text for p in report], options.new_tokens, load_model(MODEL)
    rows = len(report)

    def plain(**more: Any) -> int:
        return generation.hugging_face(model, texts, batch_size=rows, new_tokens=n, **more)

    jobs: dict[str, Callable[[], float]] = {
        OURS: lambda: sum(
            c.n_tokens for c in generate(model, report, max_new_tokens=n, batch_size=rows, progress=False)
        ),
        DYNAMIC: plain,
        STATIC: lambda: plain(cache_implementation="static"),
        CONTINUOUS: lambda: continuous(model, texts, new_tokens=n),
    }
    failed: dict[str, str] = {}
    for name in list(jobs):
        try:
            jobs[name]()  # warms, and compiles where it can
        except Exception as error:  # a kind that does not run here must not lose the others
            failed[name] = first_lines(error)
            del jobs[name]
    turns = in_turns(jobs, rounds=options.rounds)
    shown = [
        [name, f"{turns.rate(name):.0f}", str(turns.ratio(name, DYNAMIC))]
        if name in jobs
        else [name, "–", "–"]
        for name in (OURS, DYNAMIC, STATIC, CONTINUOUS)
    ]
    text = [
        f"{rows} report prompts, {n} new tokens, unedited, greedy, batch {rows}, end to end, after one call of each.",
        table(["job", "tokens/s", "against the dynamic cache"], shown),
        *(f"{name} did not run: {why}" for name, why in failed.items()),
    ]
    return Section(
        name="caches", title="Kinds of cache in generation", body="\n\n".join(text), quick=options.quick
    )
