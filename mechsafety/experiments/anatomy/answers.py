"""The models' own answers of an anatomy run and what the judge finds them to be: made once, for every part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from mechsafety.anatomy.outputs import Answers, with_completions
from mechsafety.anatomy.readings import outcome_row, prompt_groups, read_outcomes
from mechsafety.core.verdict import Label
from mechsafety.experiments.anatomy.config import Role
from mechsafety.experiments.session import Session
from mechsafety.generation.answered import Completion, answer_frame
from mechsafety.generation.answers import Example
from mechsafety.generation.completions import generate
from mechsafety.judges.outcomes import Asking
from mechsafety.prompts.messages import read_turns
from mechsafety.prompts.prompt_set import Prompt, PromptSet
from mechsafety.regions.examples import example_of

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

Which = Literal["fit", "held-out"]
"""The fit prompts, or the report prompts and the attacks."""

VERDICT_COLUMNS = ["part", "model", "state", "id", "group", "label"]
_SCORED = 128
"""Refusals that weights are scored on, at most."""


@dataclass(kw_only=True)
class OwnAnswers:
    """Greedy answers of each model, and verdicts on them, as parts of the run.

    Held-out prompts go group by group, all in one call, as those of the models between base and tuned do: a model that
    is one of ``models`` gives the very same answers there.
    """

    session: Session
    models: Mapping[Role, TransformerBridge]
    prompts: PromptSet
    attacks: Sequence[Prompt]
    asking: Asking

    def __post_init__(self) -> None:
        self.groups = prompt_groups(self.prompts.to_judge, self.attacks)
        self.held_out = [prompt for group in self.groups.values() for prompt in group]
        self.group_of = {p.id: name for name, group in self.groups.items() for p in group}
        self._read: dict[tuple[Role, Which], Answers] = {}

    def __call__(self, role: Role, which: Which) -> Answers:
        """One model's answers to the fit or to the held-out prompts."""
        if (role, which) not in self._read:
            prompts = self.prompts.to_estimate if which == "fit" else self.held_out
            make = partial(self._answer, role, which, prompts)
            rows = self.session.part("completions", f"{role}-{which}", make=make).to_dict(orient="records")
            made = [_completion(row) for row in rows]
            self._read[role, which] = with_completions(self.models[role], prompts, made)
        return self._read[role, which]

    def _answer(self, role: Role, which: Which, prompts: Sequence[Prompt]) -> pd.DataFrame:
        self.session.say(f"answers of the {role} model to {len(prompts)} {which} prompts")
        model, more = self.models[role], self.asking["max_new_tokens"]
        done = generate(
            model, prompts, max_new_tokens=more, seed=self.asking["seed"], label=f"{role} answers"
        )
        self.keep("own answers", role, which, done)
        return done.to_frame()

    def keep(self, part: str, model: str, state: str, answers: Sequence[Completion]) -> None:
        """Keep the answers of a model in a state, for other judges."""
        rows = answer_frame(answers, part=part, model=model, state=state)
        self.session.keep_answers(rows, part, model, state)

    def keep_labels(
        self, part: str, model: str, state: str, answers: Sequence[Completion], labels: Sequence[Label]
    ) -> None:
        """Keep what the judge finds the answers of a model in a state to be."""
        found = dict(zip([c.id for c in answers], labels, strict=True))
        self.session.run.write_part(self._rows(part, model, state, found), "labels", part, model, state)

    def _rows(self, part: str, model: str, state: str, labels: Mapping[str, Label]) -> pd.DataFrame:
        import pandas as pd

        columns = {"part": part, "model": model, "state": state, "id": list(labels)}
        columns |= {"group": [self.group_of[i] for i in labels], "label": list(labels.values())}
        return pd.DataFrame(columns)[VERDICT_COLUMNS]

    def read_verdicts(self) -> pd.DataFrame:
        """The verdict on every answer to a held-out prompt that was judged. Columns: :data:`VERDICT_COLUMNS`."""
        import pandas as pd

        run = self.session.run
        kept = [
            self._rows("own answers", role, "held-out", self.verdicts(role, "held-out"))
            for role in self.models
            if run.has_part("verdicts", f"{role}-held-out", suffix="json")
        ]
        kept += [pd.read_parquet(path) for path in run.parts("labels")]
        return pd.concat([pd.DataFrame(columns=VERDICT_COLUMNS), *kept], ignore_index=True)

    def verdicts(self, role: Role, which: Which) -> dict[str, Label]:
        """What the judge finds these answers to be, by the prompt's id."""
        return self.session.json_part(
            *("verdicts", f"{role}-{which}"),
            make=lambda: read_outcomes(self(role, which).completions, self.asking["judge"]),
        )

    def outcomes(self, role: Role) -> list[dict[str, Any]]:
        """One row per group of what the model as it is answers: :func:`outcome_rows`."""
        labels = self.verdicts(role, "held-out")
        return [
            {"group": name, **outcome_row(labels, [p.id for p in group])}
            for name, group in self.groups.items()
        ]

    def refusals(self, role: Role) -> list[Example]:
        """A model's own refusals of harmful fit prompts, the first :data:`_SCORED`."""
        labels = self.verdicts(role, "fit")
        refused = [
            c
            for c in self(role, "fit").completions
            if c.label == "harmful" and labels[c.id] == "refusal" and c.text.strip()
        ]
        return [example_of(c, response="full") for c in refused[:_SCORED]]


def _completion(row: Mapping[str, Any]) -> Completion:
    return Completion(
        id=row["id"],
        prompt=row["prompt"],
        label=row["label"],
        category=row["category"],
        text=row["response"],
        tokens=tuple(int(token) for token in row["tokens"]),
        n_prompt_tokens=int(row["n_prompt_tokens"]),
        finish=row["finish"],
        messages=read_turns(row.get("messages"), at=row["id"]),
    )
