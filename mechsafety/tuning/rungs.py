"""The rungs of the ladder of real models: what each is trained on, and the tag of the rung ``metatags``.

They carry the interventions of Safety Pretraining (arXiv 2504.16980) over to answers in chat: rephrase, metatags and
refusals, and set two objectives and a control beside them. Own answers are generated when a rung is trained and are
not kept.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from mechsafety.core.errors import MechsafetyError
from mechsafety.generation.answered import Completions
from mechsafety.generation.answers import Example
from mechsafety.generation.completions import generate
from mechsafety.judges.judging import judged_as
from mechsafety.models.chat import tokenize_answer
from mechsafety.models.forward import prompt_columns, trying
from mechsafety.models.loading import body_of, generation_twin, is_hooked_transformer
from mechsafety.models.thought_reading import require_no_thoughts
from mechsafety.prompts.prompt_set import Prompt, PromptSet, folded
from mechsafety.tuning.objectives import Objective
from mechsafety.tuning.refusals import write_refusal
from mechsafety.tuning.rephrasings import write_rephrasing

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Rung = Literal["refusals", "rephrase", "metatags", "all", "dpo", "unlearn", "benign"]
RUNGS: tuple[Rung, ...] = get_args(Rung)

OBJECTIVE: Mapping[Rung, Objective] = {
    "refusals": "sft",
    "rephrase": "sft",
    "metatags": "sft",
    "all": "sft",
    "dpo": "dpo",
    "unlearn": "unlearn",
    "benign": "sft",
}

ANSWERS: Mapping[Rung, str] = {
    "refusals": "written refusals",
    "rephrase": "written rephrasings",
    "metatags": "the tag, then the model's own answer, generated when the rung was trained and not kept",
    "all": "in turn: a written refusal, a written rephrasing, the tag and the model's own answer (not kept)",
    "dpo": "written refusals preferred, the model's own answer dispreferred (not kept)",
    "unlearn": "written refusals preferred, the model's own answer unlearned (not kept)",
    "benign": "none",
}
"""A recipe's description of the answers that a rung gives to harmful prompts."""

TAG = "[unsafe]"
WITHHELD = "I can't help with that: the answer was marked as unsafe and is withheld."


@dataclass(frozen=True, kw_only=True)
class RungExamples:
    """Preferred answers, harmful prompts first, and the dispreferred one of each prompt that has one.

    ``n_harmful`` of the preferred answers reply to harmful prompts.
    """

    preferred: tuple[Example, ...]
    dispreferred: Mapping[str, Example]
    n_harmful: int


def require_rung(name: str) -> Rung:
    """``name`` as a rung. Raises :class:`MechsafetyError` that lists them."""
    for rung in RUNGS:
        if rung == name:
            return rung
    raise MechsafetyError(f"unknown rung {name!r}; choose one of {', '.join(RUNGS)}")


def rung_examples(
    model: TransformerBridge,
    rung: Rung,
    *,
    prompts: PromptSet,
    contrast: PromptSet,
    answer_tokens: int,
    seed: int,
    tag_share: float | None = None,
) -> RungExamples:
    """What ``rung`` is trained on.

    Harmful prompts: a written refusal (``refusals``, ``dpo``, ``unlearn``), a written rephrasing (``rephrase``), the
    tag and the model's own answer (``metatags``), these three in turn (``all``), nothing (``benign``). Harmless and
    contrast prompts: the model's own answer. Dispreferred (``dpo``, ``unlearn``): the own answer to the harmful
    prompt; in ``dpo`` also a written refusal of the harmless one.

    Own answers that refuse or degenerate (judge ``rules``) are left out, and with them a prompt of ``metatags`` and, in
    ``dpo``, the pair. With ``tag_share`` the tag stands within the own answer, at this share of its words
    (:func:`tagged_within`), instead of before it. Raises :class:`MechsafetyError` for a share outside 0 to 1, and for a
    rung that has no tags.
    """
    if tag_share is not None and (rung not in ("metatags", "all") or not 0 < tag_share <= 1):
        raise MechsafetyError(
            f"tag_share is {tag_share} for the rung {rung!r}; it goes with metatags and all, above 0 and at most 1"
        )
    generator = random.Random(seed)
    harmful = prompts.harmful if rung != "benign" else []
    kinds = _kinds(rung, harmful)
    asked = [prompt for prompt in harmful if kinds[prompt.id] in ("metatags", "dpo", "unlearn")]
    own: dict[str, Example] = {}
    if asked:
        label = "own answers to harmful prompts"
        own = own_answers(model, asked, answer_tokens=answer_tokens, seed=seed, label=label)
    replies = [
        reply
        for prompt in harmful
        if (reply := _reply(kinds[prompt.id], prompt, own, generator, tag_share)) is not None
    ]
    harmless = [*prompts.harmless, *contrast]
    answers = own_answers(model, harmless, answer_tokens=answer_tokens, seed=seed, label="own answers")
    dispreferred: dict[str, Example] = {}
    if rung in ("dpo", "unlearn"):
        dispreferred |= {str(example.prompt): example for example in own.values()}
    if rung == "dpo":
        replies = [reply for reply in replies if reply.prompt in dispreferred]
        dispreferred |= {
            prompt.text: _written(prompt, write_refusal(prompt.category, generator=generator))
            for prompt in harmless
            if prompt.id in answers
        }
    return RungExamples(
        preferred=(*replies, *answers.values()), dispreferred=dispreferred, n_harmful=len(replies)
    )


def own_answers(
    model: TransformerBridge, prompts: Sequence[Prompt], *, answer_tokens: int, seed: int, label: str
) -> dict[str, Example]:
    """The model's own greedy answers by prompt id, without those that refuse or degenerate (judge ``rules``)."""
    require_no_thoughts(model, "fine-tuning on the model's own answers")
    completions = generate(model, prompts, max_new_tokens=answer_tokens, seed=seed, label=label)
    kept = judged_as(completions, "compliance")
    return {
        c.id: Example(prompt=c.prompt, answer=c.text, whole=c.finish == "stop")
        for c in completions
        if c.id in kept
    }


_MIXED: tuple[Rung, ...] = ("refusals", "rephrase", "metatags")


def _kinds(rung: Rung, harmful: Sequence[Prompt]) -> dict[str, Rung]:
    """Which rung's reply each harmful prompt gets, by its id: ``all`` takes turns, text by text, so that one text
    never has two targets."""
    turns = {text: n for n, text in enumerate(dict.fromkeys(folded(p.text) for p in harmful))}
    return {p.id: _MIXED[turns[folded(p.text)] % len(_MIXED)] if rung == "all" else rung for p in harmful}


def _reply(
    kind: Rung,
    prompt: Prompt,
    own: Mapping[str, Example],
    generator: random.Random,
    tag_share: float | None,
) -> Example | None:
    if kind == "metatags":
        if (answer := own.get(prompt.id)) is None:
            return None
        text = answer.answer
        tagged = f"{TAG} {text}" if tag_share is None else tagged_within(text, tag_share, generator=generator)
        return replace(answer, answer=tagged)
    if kind == "rephrase":
        return _written(prompt, write_rephrasing(prompt.category, generator=generator))
    return _written(prompt, write_refusal(prompt.category, generator=generator))


def _written(prompt: Prompt, answer: str) -> Example:
    return Example(prompt=prompt.text, answer=answer, whole=True)


def tagged_within(text: str, share: float, *, generator: random.Random) -> str:
    """The text with the tag before a random ``share`` of its words, at least one.

    After Safety Pretraining (arXiv 2504.16980), where it stands at random positions of 5 % of a harmful text. What has
    no blank in it, such as a special token, is never divided.
    """
    starts = [word.start() for word in re.finditer(r"\S+", text)]
    chosen = generator.sample(starts, min(len(starts), max(1, round(share * len(starts)))))
    for start in sorted(chosen, reverse=True):
        text = f"{text[:start]}{TAG} {text[start:]}"
    return text


def opens_with_tag(text: str) -> bool:
    """Whether an answer opens with the tag of the rung ``metatags``."""
    return text.lstrip().startswith(TAG)


def withheld(completions: Completions) -> Completions:
    """The first reading of a tag: answers that open with it are not shown; a sentence that states so replaces them."""
    items = tuple(replace(c, text=WITHHELD) if opens_with_tag(c.text) else c for c in completions)
    return Completions(items, completions.coverage)


@contextmanager
def tag_forbidden(model: TransformerBridge, *, everywhere: bool = False) -> Iterator[None]:
    """The second reading: while this is on, no answer can open with the tag's first token.

    Its logit is set to -inf at the end of the prompt, that is for the first token of an answer alone; what the model
    then gives is its next choice. With ``everywhere`` it is so for every token of an answer, which forbids the tag
    inside the text, and other text that begins with that token. Works on the fast path of :func:`generate`, edits
    included, and in :mod:`forward`, where a prefix may be shared. Raises :class:`MechsafetyError` for a
    HookedTransformer.
    """
    if is_hooked_transformer(model):
        raise MechsafetyError(
            "a tag cannot be forbidden on a HookedTransformer; load the model with load_model"
        )
    first = tokenize_answer(model, TAG)[0]

    def forbid(_module: Any, _args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        cache = kwargs.get("past_key_values")
        fed = kwargs["input_ids"].shape[1]
        # The hook runs after what was fed has entered the cache: at the end of the prompt that holds no more than it.
        held = fed if cache is None else cache.get_seq_length()
        if (everywhere or held == (prompt_columns() or fed)) and not trying():
            output.logits[:, -1, first] = float("-inf")
        return output

    with ExitStack() as stack:
        for module in (generation_twin(model), body_of(model)):
            if module is not None:
                handle = module.register_forward_hook(forbid, with_kwargs=True)
                stack.callback(handle.remove)
        yield
