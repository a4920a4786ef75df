"""How far batched numbers are from plain transformers on one prompt alone, by architecture: a table for the docs.

    python -m benchmarks.architectures > table.md
    python -m benchmarks.architectures llama gemma3 > rows.md

Under transformer-lens 3.9 the models are HookedTransformers. The first table says what works: right with the deviation,
or refused. Each cell of the second holds the largest deviation over four prompts of 6 to 40 tokens (sliding windows are
20), relative to the largest value, without / with tokens that all prompts begin with. The bound of the tests is 1e-4.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import mechsafety as ms
from mechsafety.core.errors import MechsafetyError
from mechsafety.generation.scoring import option_log_probs
from mechsafety.models.prefixes import all_last_logits, prefix_note
from mechsafety.regions.heads import head_outputs
from mechsafety.regions.maps import linear_maps, unseen_share
from tests.architecture_measures import MEASURES, outcome, shown
from tests.architectures import ARCHITECTURES, MORE, save_architecture
from tests.models.test_batched_alone import TEMPLATES, Subject, oracle_heads, prompts, swept

OPTIONS = [[7], [8, 9, 10, 11]]


BATCHED = ("shared tokens", "last logits", "residual stream", "options", "heads", "sweep", "answers")


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    hooked = version("transformer-lens").startswith("3.")
    known = _names(hooked)
    names = sys.argv[1:] or known
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"{unknown[0]!r} is not one of {', '.join(known)}")
    if not hooked:
        _print_table(names, (*MEASURES, "weights not seen"), _measures)
        print()
    _print_table(names, BATCHED, lambda name: _row(name, hooked))


def _print_table(names: list[str], columns: Sequence[str], row: Callable[[str], list[str]]) -> None:
    _print_row(["architecture", *columns])
    _print_row(["---"] * (len(columns) + 1))
    for name in names:
        with contextlib.redirect_stderr(io.StringIO()):  # bars of transformers
            found = row(name)
        _print_row([name, *found])


def _print_row(cells: Sequence[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def _measures(name: str) -> list[str]:
    with tempfile.TemporaryDirectory() as scratch:
        try:
            one = _subject(Path(scratch), name, "no prefix", False)
        except MechsafetyError:
            return ["refused"] * (len(MEASURES) + 1)
        found = [outcome(measure, one) for measure in MEASURES.values()]
        return [*found, _or_refused(lambda: f"{unseen_share(one.model, linear_maps(one.model)):.1%}")]


def _names(hooked: bool) -> list[str]:
    if not hooked:
        return [*ARCHITECTURES, *MORE]
    from tests.hooked_architectures import HOOKED

    return list(HOOKED)


def _row(name: str, hooked: bool) -> list[str]:
    try:
        found = [_measured(name, kind, hooked) for kind in ("no prefix", "prefix")]
    except MechsafetyError:
        return ["refused"] * len(BATCHED)
    shared = found[1].pop("shared")
    found[0].pop("shared")
    runs = "once" if shared == "run once" else "with every prompt"
    pairs = zip(found[0].values(), found[1].values(), strict=True)
    return [runs, *("refused" if "refused" in pair else " / ".join(pair) for pair in pairs)]


def _measured(name: str, kind: str, hooked: bool) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as scratch:
        one = _subject(Path(scratch), name, kind, hooked)
        want = one.last_logits()
        found = {
            "logits": _or_refused(
                lambda: _apart(
                    all_last_logits(one.model, one.body, one.sequences, batch_size=one.batch_size), want
                )
            ),
            "residual": _or_refused(lambda: _residual(one)),
            "options": _or_refused(lambda: _options(one)),
            "heads": _or_refused(
                lambda: _apart(
                    head_outputs(one.model, prompts(), batch_size=one.batch_size).outputs,
                    torch.stack([oracle_heads(one, tokens) for tokens in one.sequences]),
                )
            ),
            "sweep": _or_refused(lambda: _sweep(one)),
            "answers": _or_refused(lambda: _answers(one)),
        }
        return {"shared": prefix_note(one.model)} | found


def _subject(folder: Path, name: str, kind: str, hooked: bool) -> Subject:
    if not hooked:
        return Subject(save_architecture(folder, name, template=TEMPLATES[kind]), name)
    from tests.models.test_batched_alone_hooked import made

    with contextlib.redirect_stdout(io.StringIO()):  # TransformerLens prints what it has loaded
        return made(folder, name, kind)


def _or_refused(measure: Callable[[], float | str]) -> str:
    try:
        found = measure()
    except MechsafetyError:
        return "refused"
    return found if isinstance(found, str) else shown(found)


def _apart(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


def _residual(one: Subject) -> float:
    got = ms.residual_stream(one.model, prompts(), batch_size=one.batch_size).activations[:, 0]
    wanted = [one.streams(tokens) for tokens in one.sequences]
    return max(_apart(got[row, : len(want)], want) for row, want in enumerate(wanted))


def _options(one: Subject) -> float:
    got = option_log_probs(one.model, one.sequences, OPTIONS, batch_size=one.batch_size)
    worst = 0.0
    for row, tokens in enumerate(one.sequences):
        for column, option in enumerate(OPTIONS):
            logits = one.alone([*tokens, *option]).logits[0].double().log_softmax(-1)
            want = sum(float(logits[len(tokens) - 1 + step, token]) for step, token in enumerate(option))
            worst = max(worst, abs(float(got[row, column]) - want) / abs(want))
    return worst


def _sweep(one: Subject) -> float:
    fast, plain = (torch.tensor(t.to_numpy(dtype=float)).nan_to_num() for t in swept(one))
    return _apart(fast, plain)


def _answers(one: Subject) -> str:
    done: Any = ms.generate(one.model, prompts(), max_new_tokens=6, seed=0, batch_size=one.batch_size)
    same = sum(list(c.tokens) == one.greedy(t, 6) for c, t in zip(done, one.sequences, strict=True))
    return f"{same} of {len(one.sequences)}"


if __name__ == "__main__":
    main()
