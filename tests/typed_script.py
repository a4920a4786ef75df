"""A user's script, of public names alone: type-checked in strict mode by ``make check``, never run.

The public hints are complete where nothing of it is an error. Its last lines are wrong, each in its own way, and say so:
the check fails where one of them is not found.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

import mechsafety as ms


def apologises(prompt: str, response: str) -> bool:
    return "sorry" in response.lower() and prompt != response


@ms.judges.batched
def short(prompts: list[str], responses: list[str]) -> list[bool]:
    return [len(response) < 20 for response, _ in zip(responses, prompts, strict=True)]


def certainty(logits: Tensor) -> Tensor:
    return logits.softmax(dim=-1).amax(dim=-1)


model = ms.load_model("smollm2-135m", device="cpu", template="plain")
prompts: ms.PromptSet = ms.load_prompts("requests.jsonl", text="request", labels={"bad": "harmful"})
prompts = prompts.split(fit=0.6, validation=0.2, report=0.2, seed=0)
own = ms.PromptSet((ms.Prompt(id="lock", text="how do i pick a lock", label="harmful"),))
ids: list[str] = [prompt.id for prompt in prompts.report if prompt.label == "harmful"]

cache = ms.residual_stream(model, prompts.fit, positions=[-2, -1])
directions = ms.find_directions(cache, method="mean_difference", resamples=10)
profile = ms.profile_layers(directions, ms.residual_stream(model, prompts.validation))
swept = ms.sweep(model, directions, prompts.validation, layers=range(8, 16), score=certainty)
chosen = swept.nearest()
direction: ms.Direction = directions.at(layer=chosen.layer, position=chosen.position)
cosine = directions.cosine()

steering = ms.Add(np.ones(576), layer=[10, 11], coefficient=0.5)
edit = ms.Ablate(direction, layers=range(20)) + steering
plain = ms.generate(model, ["how do i bake bread", "tell me a story"], max_new_tokens=32)
answers: ms.Completions = ms.generate(
    model, prompts.report, edit=[ms.Ablate(direction), steering], out="answers"
)
texts: list[str] = [answer.text for answer in answers]
with ms.edited(model, edit) as receipt:
    likely: Tensor = ms.log_probs(model, "how do i bake bread")
fired: int = sum(receipt.fired.values())
ms.save_edit(edit, "edit.safetensors", model=model)

verdicts = ms.judge(answers, ["rules", apologises, short])
rates = ms.refusal_rates({"original": ms.judge(plain), "edited": verdicts})
interval: ms.statistics.Interval = ms.statistics.wilson(9, 10)
p: float = ms.statistics.mcnemar(6, 0)
tests = ms.statistics.paired_tests(ms.judges.verdict_table({"original": verdicts}))

config = ms.StudyConfig(systems=("smollm2-135m",), prompts="requests.jsonl", limit=20, judges=("rules",))
study = ms.run_study(config, "runs/study", progress=False)
findings: list[str] = list(study.findings)
for name, figure in study.figures().items():
    ms.save_figure(figure, f"{name}.pdf")
ms.save_figure(swept.plot(title="Own", width=500), "sweep.pdf")
ms.save_figure(ms.plots.outcome_bars(study.tables["rates"], judge="rules"), "rates.svg")
shown = (
    len(profile.to_frame()),
    len(rates),
    len(tests),
    cosine,
    ids,
    texts,
    fired,
    likely,
    interval.low,
    p,
    findings,
    own,
)

fraction: int = interval.low  # pyright: ignore[reportAssignmentType]
nothing = ms.no_such_name  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]
ms.generate(model, max_tokens=3)  # pyright: ignore[reportCallIssue]
