"""A model's own refusals and answers as examples, sorted by the judge ``rules``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mechsafety.generation.answers import Example
from mechsafety.judges.judging import judged_as
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.prompts.accepted import PromptsLike, as_prompts
from mechsafety.regions.examples import Kind, Response, attribution_examples

if TYPE_CHECKING:
    pass


def examples_from_model(
    model: ModelLike,
    prompts: PromptsLike,
    *,
    kind: Kind,
    n: int,
    response: Response = "full",
    max_new_tokens: int = 48,
    seed: int = 0,
) -> list[Example]:
    """``n`` of the model's own refusals of harmful prompts (``safety``), or own answers to harmless ones (``utility``).

    Refusals are what the judge ``rules`` finds to be one, answers what it finds to comply. Raises as
    :func:`mechsafety.regions.examples.attribution_examples` does.

    Arguments:
        kind: safety or utility.
        response: full keeps the whole answer, short its first sentence (of refusals alone).

    Returns:
        The examples: a prompt and an answer each.

    Example:
        >>> examples = ms.regions.examples_from_model(model, prompts.fit, kind="safety", n=4, max_new_tokens=6)
        >>> {example.prompt for example in examples} <= {prompt.text for prompt in prompts.fit.harmful}
        True
    """
    model = as_model(model)
    prompts = as_prompts(prompts)
    wanted = "refusal" if kind == "safety" else "compliance"
    return attribution_examples(
        model,
        prompts,
        kind=kind,
        n=n,
        response=response,
        max_new_tokens=max_new_tokens,
        seed=seed,
        keep=lambda completions: judged_as(completions, wanted),
    )
