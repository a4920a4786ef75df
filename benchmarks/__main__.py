"""Speed and memory as ratios in one run; ``make bench`` writes docs/performance.md.

Absolute times differ from machine to machine; each figure here is a ratio to a baseline that ran in the
same process, in turns, on the same prompts. Every finished section is kept in runs/benchmarks, so that
``--only`` measures one anew and the page keeps the others. ``--quick`` tries everything with tiny sizes and
prints the page without writing it.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import (
    caches,
    caching,
    embedding_judge,
    generation,
    gpu,
    judge_statistics,
    logit_judge,
    memory,
    regions,
    rules_judge,
    scaling,
    startup,
    study,
    sweeps,
)
from benchmarks.options import Options
from benchmarks.page import page
from benchmarks.sections import Section

SECTIONS: dict[str, Callable[[Options], Section | None]] = {
    "sweep": sweeps.section,
    "scaling": scaling.section,
    "caching": caching.section,
    "memory": memory.section,
    "generation": generation.section,
    "caches": caches.section,
    "regions": regions.section,
    "logit_judge": logit_judge.section,
    "judge_statistics": judge_statistics.section,
    "embedding_judge": embedding_judge.section,
    "gpu": gpu.section,
    "rules_judge": rules_judge.section,
    "startup": startup.section,
    "study": study.section,
}
_OPTIONAL = {"gpu", "study"}  # they need a GPU, and a finished study


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", choices=SECTIONS, action="append", help="measure only this; may be repeated"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round; prints, writes no page")
    parser.add_argument("--rounds", type=int, help="turns that every job gets (3; quick: 1)")
    parser.add_argument("--prompts", type=int, help="report prompts to answer (100; quick: 8)")
    parser.add_argument("--new-tokens", type=int, help="tokens of each answer (32; quick: 8)")
    parser.add_argument("--every", type=int, default=5, help="time each so-manieth layer of the sweep")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of `gpu`")
    parser.add_argument("--study", type=Path, default=Path("runs/default"), help="a finished default study")
    parser.add_argument("--store", type=Path, default=Path("runs/benchmarks"), help="where sections are kept")
    parser.add_argument("--out", type=Path, default=Path("docs/performance.md"))
    return parser


def main() -> None:
    given = _parser().parse_args()
    options = Options(
        rounds=given.rounds or (1 if given.quick else 3),
        prompts=given.prompts or (8 if given.quick else 100),
        new_tokens=given.new_tokens or (8 if given.quick else 32),
        every=given.every,
        quick=given.quick,
        device=given.device,
        study=given.study,
    )
    warnings.simplefilter("ignore")
    store = given.store / "quick" if given.quick else given.store
    for name in given.only or SECTIONS:
        started = time.perf_counter()
        section = SECTIONS[name](options)
        if section is not None:
            section.save(store)
        print(f"{name}: {time.perf_counter() - started:.0f} s" + ("" if section else ", nothing to measure"))
    kept = [Section.load(path) for name in SECTIONS if (path := store / f"{name}.json").is_file()]
    text = page(kept)
    print(text)
    missing = sorted(set(SECTIONS) - _OPTIONAL - {section.name for section in kept})
    if missing and not given.quick:
        print(f"{given.out} is left as it was: {', '.join(missing)} not yet measured")
    elif not given.quick:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text)


if __name__ == "__main__":
    main()
