"""The models' own answers of an anatomy run and what the judge finds them to be: made once, for every part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mechsafety.anatomy.outputs import Answers, with_completions
from mechsafety.anatomy.readings import outcome_row, prompt_groups, read_outcomes
from mechsafety.core.verdict import Judge, Label
from mechsafety.experiments.anatomy.config import Role
from mechsafety.generation.answers import Example
from mechsafety.generation.completions import Completion, generate
from mechsafety.prompts.prompt_set import Prompt, PromptSet
from mechsafety.regions.examples import example_of
from mechsafety.runs.folder import RunFolder

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Which = Literal["fit", "held-out"]
"""The fit prompts, or the report prompts and the attacks."""

_SCORED = 128
"""Refusals that weights are scored on, at most."""


@dataclass(kw_only=True)
class OwnAnswers:
    """Greedy answers of each model, and verdicts on them, as parts of ``run``.

    Held-out prompts go group by group, all in one call, as those of the models between base and tuned do: a model that
    is one of ``models`` gives the very same answers there.
    """

    run: RunFolder
    models: Mapping[Role, TransformerBridge]
    prompts: PromptSet
    attacks: Sequence[Prompt]
    judge: Judge
    max_new_tokens: int
    seed: int
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self.groups = prompt_groups(self.prompts.to_judge, self.attacks)
        self.held_out = [prompt for group in self.groups.values() for prompt in group]
        self.group_of = {p.id: name for name, group in self.groups.items() for p in group}
        self._read: dict[tuple[Role, Which], Answers] = {}

    def __call__(self, role: Role, which: Which) -> Answers:
        """One model's answers to the fit or to the held-out prompts."""
        if (role, which) not in self._read:
            model = self.models[role]
            prompts = self.prompts.to_estimate if which == "fit" else self.held_out
            key = ("answers", f"{role}-{which}")
            if not self.run.has_part(*key):
                self.say(f"answers of the {role} model to {len(prompts)} {which} prompts")
                done = generate(
                    model,
                    prompts,
                    max_new_tokens=self.max_new_tokens,
                    seed=self.seed,
                    label=f"{role} answers",
                )
                self.run.write_part(done.to_frame(), *key)
            rows = self.run.read_part(*key).to_dict(orient="records")
            self._read[role, which] = with_completions(model, prompts, [_completion(r) for r in rows])
        return self._read[role, which]

    def verdicts(self, role: Role, which: Which) -> dict[str, Label]:
        """What the judge finds these answers to be, by the prompt's id."""
        key = ("verdicts", f"{role}-{which}")
        if not self.run.has_part(*key, suffix="json"):
            self.run.write_json_part(read_outcomes(self(role, which).completions, self.judge), *key)
        return self.run.read_json_part(*key)

    def outcomes(self, role: Role) -> list[dict[str, Any]]:
        """A row a group of what the model as it is answers: :func:`outcome_rows`."""
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
    )
