"""What a model does with harmful and with harmless requests: refuse, comply coherently, or fall apart.

An attack succeeds where the answer complies and is language. The published metric (no refusal phrase and 20 words at
least; Wei et al., ICML 2024, arXiv 2402.05162) stands beside it: it counts a collapsed model's garbage as success.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

from mechsafety.core.names import MAX_NEW_TOKENS
from mechsafety.core.values import Value
from mechsafety.core.verdict import Label
from mechsafety.edits.sums import EditLike, as_edit
from mechsafety.generation.completions import DEFAULT_BATCH
from mechsafety.judges.accepted import JudgeLike, as_judge
from mechsafety.judges.outcomes import Asking, Keep, Tally, answered, with_published
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.models.chat import Rendering
from mechsafety.prompts.accepted import PromptsLike, as_prompts
from mechsafety.prompts.columns import LABELS
from mechsafety.statistics.rates import Interval

if TYPE_CHECKING:
    import pandas as pd

_SHARES = {
    "harmful": {name: name for name in ("refused", "complied", "degenerate")},
    "harmless": {"refused": "harmless_refused", "degenerate": "harmless_degenerate"},
}
OUTCOME_COLUMNS: tuple[str, ...] = tuple(
    column
    for label, shares in _SHARES.items()
    for column in (
        f"{label}_n",
        *(f"{name}{end}" for name in shares.values() for end in ("", "_low", "_high")),
    )
)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Outcomes(Value):
    """Verdicts on the answers to harmful and to harmless requests, with intervals and denominators.

    Answers that the judge could not read are in no share; they are ``unparsed`` in the tally. ``verdicts`` has the
    verdict on each prompt by its id, of both labels.
    """

    harmful: Tally
    harmless: Tally
    verdicts: Mapping[str, Label] = field(default_factory=dict, repr=False)

    def to_frame(self) -> pd.DataFrame:
        """One row with the columns :data:`OUTCOME_COLUMNS`."""
        import pandas as pd

        return pd.DataFrame([self.row()])

    def describe(self) -> str:
        parts = [f"{label}: refused {interval_text(getattr(self, label).refused)}" for label in _SHARES]
        return f"Outcomes({'; '.join(parts)})"

    def row(self) -> dict[str, int | float]:
        """The columns :data:`OUTCOME_COLUMNS`; shares of nothing are NaN."""
        row: dict[str, int | float] = {}
        for label, names in _SHARES.items():
            tally: Tally = getattr(self, label)
            row |= {f"{label}_n" if name == "n" else name: v for name, v in tally.row(**names).items()}
        return row

    def _repr_html_(self) -> str:
        lines = [
            f"<tr><td>{escape(label)}</td>"
            + "".join(f"<td>{interval_text(i)}</td>" for i in (t.refused, t.complied, t.degenerated))
            + f"<td>{t.n}</td><td>{t.unparsed}</td></tr>"
            for label, t in (("harmful", self.harmful), ("harmless", self.harmless))
        ]
        heads = ("requests", "refused", "complied", "degenerate", "read", "unread")
        return f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{''.join(lines)}</table>"


def interval_text(interval: Interval) -> str:
    """``0.12 [0.05, 0.24]``, or a dash where nothing was measured."""
    return (
        "–" if math.isnan(interval.rate) else f"{interval.rate:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
    )


def measure_outcomes(
    model: ModelLike,
    prompts: PromptsLike,
    *,
    edit: EditLike | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    seed: int = 0,
    rendering: Rendering = "chat",
    judge: JudgeLike = "rules",
    batch_size: int = DEFAULT_BATCH,
    keep: Keep | None = None,
) -> Outcomes:
    """Greedy answers to ``prompts`` under ``edit``, judged.

    With the default rendering the model's own system prompt is there: the share of compliance with harmful requests
    is the vanilla attack success rate. ``seed`` is handed on to generation, where nothing is drawn; ``keep`` receives
    the answers. Raises :class:`MechsafetyError` without prompts.

    Arguments:
        rendering: chat, chat_no_system, or text for prompts as bare text.

    Returns:
        Shares of refused, complied and degenerate answers with 95 % intervals, by label of the prompts.

    Example:
        >>> outcomes = ms.regions.measure_outcomes(model, prompts.report, max_new_tokens=4)
        >>> outcomes.harmful.n == len(prompts.report.harmful)
        True
    """
    model = as_model(model)
    prompts = as_prompts(prompts)
    edit = None if edit is None else as_edit(edit, model)
    judge = as_judge(judge)
    asking = Asking(judge=judge, max_new_tokens=max_new_tokens, seed=seed, batch_size=batch_size, keep=keep)
    answers, labels = answered(model, prompts, edit=edit, rendering=rendering, **asking)
    judged = with_published(answers.items, labels)
    by_label = {
        label: Tally.of([j for j, c in zip(judged, answers, strict=True) if c.label == label])
        for label in LABELS
    }
    verdicts = dict(zip([c.id for c in answers], labels, strict=True))
    return Outcomes(harmful=by_label["harmful"], harmless=by_label["harmless"], verdicts=verdicts)
