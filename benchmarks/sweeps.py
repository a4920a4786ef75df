"""The sweep against the released code's order of work: time, arithmetic and agreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.counting import Work, counted
from benchmarks.options import MODEL, Options
from benchmarks.reference import Place, released_order
from benchmarks.sections import Check, Section, table
from benchmarks.subjects import Subject, tuned_subject
from benchmarks.timing import Turns, in_turns
from mechsafety.core.errors import MechsafetyError
from mechsafety.directions.direction import Directions
from mechsafety.models.loading import load_model
from mechsafety.prompts.prompt_set import PromptSet, load_prompts
from mechsafety.sweeps.selection import nearest, select
from mechsafety.sweeps.sweep import Sweep, sweep

if TYPE_CHECKING:
    import pandas as pd

OURS, RACED, THEIRS = "mechsafety.sweep", "mechsafety.sweep, raced", "released order of work"
_SCORES = ("bypass", "induce", "kl")
_WANTED = 5.0  # times the released order of work


def places_of(directions: Directions, layers: Sequence[int]) -> list[Place]:
    """The candidates that both loops score: in ``layers``, below the stream's end, with a vector that is not zero."""
    return [
        (position, layer)
        for layer in layers
        if layer < directions.n_layers - 1
        for row, position in enumerate(directions.positions)
        if float(directions.vectors[row, layer].norm())
    ]


def spread_layers(n_layers: int, every: int) -> list[int]:
    """Each so-manieth layer, evenly about the middle, because ``induce`` costs less the later it begins."""
    return list(range(every // 2, n_layers, every))


def _swept(subject: Subject, prompts: PromptSet, **options: Any) -> Sweep:
    """Ours, on the prompts that the reference keeps: those that score beyond 0."""
    tokens = subject.tokens
    return sweep(subject.model, subject.directions, prompts, refusal_tokens=tokens, threshold=0.0, **options)


def race(subject: Subject, prompts: PromptSet, *, layers: Sequence[int], few: int, rounds: int) -> Turns:
    """Candidates per second of both loops, end to end.

    Ours scores every candidate in ``layers``, and races those of all layers; the reference, whose candidates all cost
    the same, scores ``few`` of them. Its unedited passes are as many as a candidate's and count as one: shared by few
    they would weigh too much.
    """
    every = len(places_of(subject.directions, range(subject.directions.n_layers)))
    places = places_of(subject.directions, layers)
    some = places[:: max(1, len(places) // few)][:few]

    def ours() -> float:
        _swept(subject, prompts, layers=layers)
        return len(places)

    def theirs() -> float:
        released_order(subject, prompts, some)
        return len(some) + 1

    def raced() -> float:
        _swept(subject, prompts, racing=True)
        return every

    return in_turns({OURS: ours, RACED: raced, THEIRS: theirs}, rounds=rounds)


def arithmetic(subject: Subject, prompts: PromptSet, layers: Sequence[int]) -> tuple[Work, Work]:
    """What ours does for all candidates in ``layers``, and the reference for one of them, its first passes aside."""
    with counted(subject.model) as ours:
        _swept(subject, prompts, layers=layers)
    with counted(subject.model) as first:
        released_order(subject, prompts, [])
    with counted(subject.model) as theirs:
        released_order(subject, prompts, places_of(subject.directions, layers)[:1])
    theirs.block_macs -= first.block_macs
    theirs.unembedding_macs -= first.unembedding_macs
    theirs.unembedded -= first.unembedded
    return ours, theirs


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Both tables of scores over the same candidates, and what the ``auto`` rule picks from each."""

    ours: pd.DataFrame
    theirs: pd.DataFrame
    chosen: tuple[str, str]

    def rows(self) -> list[list[str]]:
        both = self.ours.merge(self.theirs, on=["position", "layer"], suffixes=("", "_theirs"))
        found = []
        for name in _SCORES:
            a, b = both[name], both[f"{name}_theirs"]
            gap = (a - b).abs()
            found.append(
                [name, f"{gap.median():.3f}", f"{gap.max():.3f}", f"{a.corr(b):.5f}", f"{a.std():.2f}"]
            )
        return found


def agreement(subject: Subject, prompts: PromptSet, layers: Sequence[int]) -> Agreement:
    """Run both loops once over ``layers`` at the last position."""
    last = Subject(
        model=subject.model,
        directions=subject.at_last_position(),
        prompts=subject.prompts,
        tokens=subject.tokens,
    )
    found = _swept(last, prompts, layers=layers)
    unedited = {"harmful": found.base_harmful, "harmless": found.base_harmless}
    theirs = released_order(last, prompts, places_of(last.directions, layers)).assign(**unedited)
    n_layers = found.n_layers
    kept = found.to_frame()[found.to_frame()["layer"] < n_layers]
    return Agreement(
        ours=kept,
        theirs=theirs,
        chosen=(_chosen(kept, n_layers=n_layers), _chosen(theirs, n_layers=n_layers)),
    )


def _chosen(scores: pd.DataFrame, *, n_layers: int) -> str:
    try:
        best = select(scores, n_layers=n_layers)
    except MechsafetyError:
        best = nearest(scores, n_layers=n_layers)
    bound = f", KL bound {best.kl_bound:g}" if best.rule == "auto" else ""
    return f"layer {best.layer}, position {best.position} (rule {best.rule}{bound})"


def section(options: Options) -> Section:
    """Time, arithmetic and agreement of the sweep on the packaged model."""
    model = load_model(MODEL, device="cpu")
    per_label = options.size(32, 8)
    subject = tuned_subject(model, load_prompts("default").validation, per_label=per_label)
    prompts = subject.first(per_label)
    n_layers = model.cfg.n_layers
    layers = spread_layers(n_layers, options.size(options.every, n_layers // 2))
    places = places_of(subject.directions, layers)
    ours, theirs = arithmetic(subject, prompts, layers)  # and both loops are warm
    turns = race(subject, prompts, layers=layers, few=options.size(len(places), 2), rounds=options.rounds)
    every_layer = list(range(n_layers)) if not options.quick else spread_layers(n_layers, 6)
    same = agreement(subject, prompts, every_layer)
    faster, raced = turns.ratio(OURS, THEIRS), turns.ratio(RACED, THEIRS)
    ceiling = theirs.macs / (ours.macs / len(places))
    n_all = len(places_of(subject.directions, range(n_layers)))
    body = "\n\n".join(
        [
            _timed(turns, subject, per_label=per_label, layers=layers, n_timed=len(places), n_all=n_all),
            _bounds(ours, theirs, n_timed=len(places), found=faster.median, ceiling=ceiling),
            _agreed(same),
        ]
    )
    return Section(
        name="sweep",
        title=f"Sweep of {MODEL}",
        body=body,
        quick=options.quick,
        checks=(
            Check(
                what="raced sweep of all candidates against the released order of work",
                wanted=f"{_WANTED:.0f}x (exhaustive: {faster}, where the arithmetic allows {ceiling:.1f}x)",
                found=str(raced),
                met=raced.median >= _WANTED,
            ),
            Check(
                what="candidate selected from both tables of scores (last position, rule `auto`, else `nearest`)",
                wanted="the same",
                found=f"{same.chosen[0]}; {same.chosen[1]}",
                met=same.chosen[0] == same.chosen[1],
            ),
        ),
    )


def _timed(
    turns: Turns, subject: Subject, *, per_label: int, layers: Sequence[int], n_timed: int, n_all: int
) -> str:
    dtype = str(next(subject.model.parameters()).dtype).removeprefix("torch.")
    rows = [[name, f"{1 / turns.rate(name):.2f}", f"{n_all / turns.rate(name):.0f}"] for name in turns.rates]
    return "\n\n".join(
        [
            f"{per_label} harmful and {per_label} harmless validation prompts, {dtype}, end to end: ours with its "
            "first unedited pass, its caches and its stored streams; the reference's unedited passes, as many as a "
            "candidate's, count as one candidate. Timed in turns: the "
            f"{n_timed} candidates of layers {', '.join(map(str, layers))} at "
            f"{len(subject.directions.positions)} post-instruction positions, of {n_all} in all (zero vectors left "
            "out). The last column multiplies.",
            table(["loop", "seconds a candidate", f"seconds for {n_all}"], rows),
            f"Ours against the reference, round by round: **{turns.ratio(OURS, THEIRS)}**; raced, over all {n_all} "
            f"candidates: **{turns.ratio(RACED, THEIRS)}**.",
            "The reference is the order of work of the code released with Arditi et al. 2024, on the plain Hugging "
            "Face module: for every candidate three passes at batch 32, every prompt padded to the longest, logits of "
            "every position, projections in the model's dtype at 3 sites a block. Only the last position is turned "
            "into float64; the released code turns all of them.",
        ]
    )


def _bounds(ours: Work, theirs: Work, *, n_timed: int, found: float, ceiling: float) -> str:
    def row(name: str, work: Work, n: int) -> list[str]:
        return [
            name,
            f"{work.tokens / n:,.0f}",
            f"{work.unembedded / n:,.0f}",
            f"{work.block_macs / n / 1e9:.1f}",
            f"{work.unembedding_macs / n / 1e9:.1f}",
            f"{work.macs / n / 1e9:.1f}",
        ]

    head = ["a candidate", "tokens through the blocks", "tokens unembedded"]
    head += ["blocks, G multiply-adds", "unembedding, G", "together, G"]
    return "\n\n".join(
        [
            "### Bounds",
            table(head, [row(OURS, ours, n_timed), row(THEIRS, theirs, 1)]),
            "Counted while both ran, at every linear map (attention's own products, about 2 % at these lengths, are "
            "left out; a token that runs through half of the blocks counts half). Ours includes everything that is "
            f"run once, shared among the {n_timed} candidates. The released order runs three padded copies of "
            "the prompts and unembeds every position; ours runs the prompt prefix once a candidate, bypass and KL as "
            "one pass, `induce` from the candidate's own layer on, and unembeds last positions. **The arithmetic "
            f"allows {ceiling:.1f}x**; {found:.1f}x was found, {found / ceiling:.0%} of it. The count "
            "leaves out projections, norms, attention and how large the matrices are, so that the ratio found may lie "
            "on either side of it.",
        ]
    )


def _agreed(same: Agreement) -> str:
    head = ["score", "median difference", "largest", "correlation", "spread over candidates (sd)"]
    a, b = same.chosen
    verdict = f"Both tables select {a}." if a == b else f"Ours selects {a}; the reference's table {b}."
    return "\n\n".join(
        [
            "### Agreement of the scores",
            f"{len(same.theirs)} candidates at the last position, mean scores, absolute differences. The reference "
            "projects in the model's dtype, ours in float32, so that the two cannot agree to the last digit in "
            "bfloat16; the tests compare the sweep with a plain loop in float32.",
            table(head, same.rows()),
            verdict,
        ]
    )
