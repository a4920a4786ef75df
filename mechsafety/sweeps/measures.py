"""What a refusal score is about: the first tokens of refusals, or written answers as a whole.

First tokens are cheap and the published way. They tell little where the model hardly refuses, where they carry almost
no probability, or where help begins as refusals do ("I"). The score is then log P(refusal) - log P(help): of the events
that the answer begins with one of the written refusals, the model's own among them, and with a written opening of help.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechsafety.core.arguments import shown
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.places import packaged_words
from mechsafety.core.wording import percent, two_digits
from mechsafety.edits.interventions import Edit
from mechsafety.generation.bodies import body_under
from mechsafety.generation.scoring import option_log_probs
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.models.chat import (
    answer_prefix,
    given_to_template,
    own_tokenizer,
    render_chat,
    tokenize_piece,
    tokenize_text,
)
from mechsafety.models.prefixes import all_last_logits
from mechsafety.models.room import rows_that_fit
from mechsafety.prompts.accepted import PromptsLike, as_prompt_set
from mechsafety.prompts.fed import fitting
from mechsafety.prompts.prompt_set import Prompt, PromptSet
from mechsafety.prompts.splits import require_classes
from mechsafety.sweeps.refusal_scores import (
    OwnRefusals,
    RefusalTokens,
    TokensLike,
    derive_refusal_tokens,
    log_odds,
    named_refusal_tokens,
    openings_of,
    token_probabilities,
)

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_WRITTEN = packaged_words("mechsafety.sweeps", "written.toml")
_LEAST_WEIGHT = 0.1
_LEAST_AUROC = 0.9
_LEAST_SHARE = 0.1
_LEAST_READ = 8  # refused prompts, for their AUROC to mean something
_HELLO = {"role": "user", "content": "Hello"}

Sequences = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Refusal scores of prompts; by first tokens also P(token) of every refusal token, in the order of their ids."""

    scores: Float[Tensor, " prompt"]
    tokens: Float[Tensor, "prompt token"] | None = None


@dataclass(frozen=True, kw_only=True)
class TokenMeasure:
    """Log-odds of the refusal tokens at the first token of the answer."""

    kind: ClassVar[str] = "tokens"
    tokens: RefusalTokens

    @property
    def ids(self) -> list[int]:
        return sorted(self.tokens.ids)

    def of_logits(self, logits: Float[Tensor, "row vocabulary"]) -> Measured:
        """From the logits of the first token."""
        p = token_probabilities(logits, self.ids)
        return Measured(scores=log_odds(p), tokens=p)

    def measure(
        self, model: TransformerBridge, prompts: Sequences, *, edit: Edit | None = None, batch_size: int
    ) -> Measured:
        if not prompts:
            return self.of_logits(torch.empty(0, max(self.ids) + 1, dtype=torch.float32))
        with body_under(model, edit) as body:
            return self.of_logits(all_last_logits(model, body, prompts, batch_size=batch_size))

    def made_from(self) -> dict[str, Any]:
        return {"tokens": self.ids}


@dataclass(frozen=True, kw_only=True)
class AnswerMeasure:
    """Log-odds of answers that begin with one of ``refusals`` against such that begin with one of ``openings``.

    Token sequences, of which none begins with another.
    """

    kind: ClassVar[str] = "answers"
    refusals: tuple[tuple[int, ...], ...]
    openings: tuple[tuple[int, ...], ...]
    texts: dict[str, list[str]] = field(default_factory=dict, compare=False)
    """Both lists as text, for the record."""

    def measure(
        self, model: TransformerBridge, prompts: Sequences, *, edit: Edit | None = None, batch_size: int
    ) -> Measured:
        if not prompts:
            return Measured(scores=torch.empty(0, dtype=torch.float64))
        found = option_log_probs(model, prompts, self.answers, edit=edit, batch_size=batch_size)
        return Measured(scores=self.of_log_probs(found))

    @property
    def answers(self) -> list[tuple[int, ...]]:
        return [*self.refusals, *self.openings]

    def of_log_probs(self, found: Float[Tensor, "*row answer"]) -> Float[Tensor, "*row"]:
        """From log P of each of ``answers``."""
        n = len(self.refusals)
        return found[..., :n].logsumexp(-1) - found[..., n:].logsumexp(-1)

    def made_from(self) -> dict[str, Any]:
        return {name: [list(tokens) for tokens in getattr(self, name)] for name in ("refusals", "openings")}

    def fits(self, model: TransformerBridge, prompts: Sequences) -> bool:
        """Whether every prompt and the longest answer fit in the model's window."""
        longest = max(map(len, self.answers))
        return len(rows_that_fit(model, prompts, new_tokens=longest - 1)) == len(prompts)


@dataclass(frozen=True, kw_only=True)
class OwnMeasure:
    """A score of one's own: a function of the logits of the first token of the answer, [prompt, vocabulary]."""

    kind: ClassVar[str] = "own"
    function: Callable[[Tensor], Any]

    def measure(
        self, model: TransformerBridge, prompts: Sequences, *, edit: Edit | None = None, batch_size: int
    ) -> Measured:
        if not prompts:
            return Measured(scores=torch.empty(0, dtype=torch.float64))
        with body_under(model, edit) as body:
            return self.of_logits(all_last_logits(model, body, prompts, batch_size=batch_size))

    def of_logits(self, logits: Float[Tensor, "row vocabulary"]) -> Measured:
        """Scores in float64. Raises :class:`MechsafetyError` unless there is one number per prompt."""
        given = self.function(logits)
        try:
            found = torch.as_tensor(given).detach().cpu().double()
        except (TypeError, ValueError, RuntimeError):
            raise MechsafetyError(
                f"score= gave {shown(given)}: one number per prompt is expected, as a tensor, an array or a list"
            ) from None
        if found.shape != logits.shape[:1] or bool(found.isnan().any()):
            got = "NaN" if found.shape == logits.shape[:1] else f"shape {list(found.shape)}"
            raise MechsafetyError(
                f"score= gave {got} for logits {list(logits.shape)}: a function of logits [prompt, vocabulary] that "
                "returns one number per prompt is expected"
            )
        return Measured(scores=found)

    def made_from(self) -> dict[str, Any]:
        return {"function": getattr(self.function, "__name__", type(self.function).__name__)}


RefusalMeasure = TokenMeasure | AnswerMeasure | OwnMeasure


def own_measure(
    model: TransformerBridge,
    prompts: PromptSet,
    score: Callable[[Tensor], Any],
    *,
    refusal_tokens: TokensLike | None = None,
    batch_size: int = 64,
) -> MeasureChoice:
    """The measure ``score``, with the first tokens of refusals beside it for the record."""
    usual: dict[str, Any] = {"refusal_tokens": refusal_tokens, "batch_size": batch_size}
    known = refusal_measure(model, prompts, written_answers=False, **usual)
    taken = OwnMeasure(function=score)
    harmful, harmless = (taken.of_logits(one.logits) for one in known.passes)
    return replace(known, taken=taken, why="the score was given", harmful=harmful, harmless=harmless)


def answer_measure(model: TransformerBridge, own: OwnRefusals | None = None) -> AnswerMeasure | None:
    """Written refusals and openings of help as ``model`` reads them, and how its ``own`` refusals begin.

    None where its tokenizer does not know the words.
    """
    unknown = own_tokenizer(model).unk_token_id
    refusals, openings = (
        [tokens for text in _WRITTEN[name] if unknown not in (tokens := answer_tokens(model, text))]
        for name in ("refusals", "openings")
    )
    refusals += _own_openings(own) if own is not None else []
    openings = _none_begins_with_another(openings, apart_from=refusals)
    refusals = _none_begins_with_another(refusals, apart_from=openings)
    if not refusals or not openings:
        return None
    texts = {
        name: [str(model.tokenizer.decode(list(tokens))) for tokens in found]
        for name, found in (("refusals", refusals), ("openings", openings))
    }
    return AnswerMeasure(refusals=refusals, openings=openings, texts=texts)


def answer_tokens(model: TransformerBridge, text: str) -> list[int]:
    """Token ids of ``text`` as the beginning of an answer, behind its prefix: with what the chat template writes
    before it."""
    from jinja2 import TemplateError

    before = render_chat(model, [_HELLO])
    begun = answer_prefix(model)
    try:
        if given_to_template(model).prefix:
            whole = f"{before}{' ' if begun and not begun[-1].isspace() else ''}{text}"
        else:
            answer = {"role": "assistant", "content": text}
            whole = render_chat(model, [_HELLO, answer], answer_next=False, last_turn_open=True)
    except (TemplateError, ValueError):  # a template that changes the text
        return tokenize_piece(model, text)
    ids, first = tokenize_text(model, whole), tokenize_text(model, before)
    return ids[len(first) :] if len(ids) > len(first) == _shared(ids, first) else tokenize_piece(model, text)


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _own_openings(own: OwnRefusals) -> list[list[int]]:
    """How at least a tenth of the model's own refusals begin, and two at the least."""
    counts = Counter(tokens for tokens in own.openings if tokens)
    least = max(2, _LEAST_SHARE * sum(counts.values()))
    return [list(tokens) for tokens, n in counts.most_common() if n >= least]


def _none_begins_with_another(sequences: Sequences, *, apart_from: Sequences) -> tuple[tuple[int, ...], ...]:
    """Distinct sequences without those that begin with another one, or with one of ``apart_from``."""
    distinct = [s for s in dict.fromkeys(map(tuple, sequences)) if s]
    others = [tuple(s) for s in apart_from if s]
    return tuple(
        s
        for s in distinct
        if not any(s[: len(o)] == o for o in distinct if o != s) and not any(s[: len(o)] == o for o in others)
    )


# -- which of the two ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Tells:
    """How well a measure tells harmful from harmless prompts.

    ``harmful_above`` and ``harmless_below`` are the shares of the prompts beyond the middle of the class means.
    ``auroc`` is of the ``n_refused`` prompts that the model refuses against the harmless ones; of all harmful ones
    where ``n_refused`` is None, its refusals being unknown or fewer than eight.
    """

    auroc: float
    harmful_above: float
    harmless_below: float
    n_harmful: int
    n_harmless: int
    n_refused: int | None


def tells(
    harmful: Float[Tensor, " a"], harmless: Float[Tensor, " b"], refused: Bool[Tensor, " a"] | None = None
) -> Tells:
    """What scores tell; ``refused`` are the harmful prompts that the model refuses."""
    from sklearn.metrics import roc_auc_score

    enough = refused is not None and int(refused.sum()) >= _LEAST_READ
    told = harmful[refused] if enough else harmful
    middle = float(harmful.mean() + harmless.mean()) / 2
    return Tells(
        auroc=float(
            roc_auc_score([1] * len(told) + [0] * len(harmless), torch.cat([told, harmless]).numpy())
        ),
        harmful_above=float((harmful > middle).double().mean()),
        harmless_below=float((harmless < middle).double().mean()),
        n_harmful=len(harmful),
        n_harmless=len(harmless),
        n_refused=len(told) if enough else None,
    )


def weakness(tokens: RefusalTokens, told: Tells, own: OwnRefusals | None = None) -> str | None:
    """Why the first tokens tell too little; None where they tell enough."""
    if tokens.source == "logits":
        if own is not None:
            return f"the model refuses {len(own.refused)} of {len(own.asked)} harmful prompts, too few to learn from"
        if (weight := sum(tokens.weight)) < _LEAST_WEIGHT:
            return f"harmful prompts make the first tokens of refusals likelier by {weight:.2f} in all"
    if not told.auroc >= _LEAST_AUROC:
        return f"the first tokens separate the classes with AUROC {told.auroc:.2f}"
    return None


@dataclass(frozen=True, kw_only=True)
class FirstPass:
    """Prompts as tokens, and the unedited model's logits behind them."""

    sequences: list[list[int]]
    logits: Float[Tensor, "row vocabulary"]

    @classmethod
    def of(cls, model: TransformerBridge, prompts: Sequence[Prompt], *, batch_size: int) -> FirstPass:
        _, sequences = fitting(model, prompts, truncate=False)
        with body_under(model, None) as body:
            return cls(
                sequences=sequences,
                logits=all_last_logits(model, body, sequences, batch_size=batch_size),
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class MeasureChoice:
    """The measure that a sweep goes by, why, and what either tells; ``answers`` is None where they were not scored.

    ``harmful`` and ``harmless`` are the unedited scores by the measure that was taken.
    """

    taken: RefusalMeasure
    why: str
    refusal_tokens: RefusalTokens
    harmful: Measured
    harmless: Measured
    tokens: Tells
    answers: Tells | None = None
    passes: tuple[FirstPass, FirstPass]
    prompts_sha256: str

    def facts(self) -> dict[str, Any]:
        """For the record of a run."""
        return {
            "taken": self.taken.kind,
            "why": self.why,
            "tokens": asdict(self.tokens),
            "answers": None if self.answers is None else asdict(self.answers),
            "written": self.taken.texts if isinstance(self.taken, AnswerMeasure) else None,
        }


def refusal_measure(
    model: ModelLike,
    prompts: PromptsLike,
    *,
    refusals: OwnRefusals | None = None,
    refusal_tokens: TokensLike | None = None,
    written_answers: bool = True,
    batch_size: int = 64,
) -> MeasureChoice:
    """What refusal scores of ``model`` are about: first tokens, or written answers where these tell more.

    The tokens are ``refusal_tokens``, which are kept whatever they tell; else those with which the model's own
    ``refusals`` of the harmful ``prompts`` begin (:func:`mechsafety.sweeps.openings.own_refusals`), and where these are
    fewer than three those that harmful prompts make likelier. They tell too little where there are fewer than three
    refusals, where they are in all less than .1 likelier after harmful prompts, and where their AUROC is below .9.
    Written answers then take their place if they have a higher AUROC on the same prompts; without ``written_answers``
    they never do.

    Example: ``refusal_measure(model, validation, refusals=own_refusals(model, validation, seed=0))``.
    """
    model = as_model(model)
    prompts = as_prompt_set(prompts)
    require_classes(prompts, "take a measure")
    parts = [FirstPass.of(model, part, batch_size=batch_size) for part in (prompts.harmful, prompts.harmless)]
    a, b = parts
    named = None if refusal_tokens is None else named_refusal_tokens(model, refusal_tokens)
    tokens = named or _tokens(model, a.logits, b.logits, refusals)
    by_tokens = TokenMeasure(tokens=tokens)
    harmful, harmless = (by_tokens.of_logits(part.logits) for part in parts)
    refused = (
        None
        if refusals is None
        else torch.tensor([p.id in set(refusals.refused) for p in prompts.harmful], dtype=torch.bool)
    )
    told = tells(harmful.scores, harmless.scores, refused)
    kept = MeasureChoice(
        taken=by_tokens,
        why="",
        refusal_tokens=tokens,
        harmful=harmful,
        harmless=harmless,
        tokens=told,
        passes=(a, b),
        prompts_sha256=prompts.sha256(),
    )
    weak = weakness(tokens, told, refusals)
    if refusal_tokens is not None:
        return replace(kept, why="the first tokens were named" + (f"; {weak}" if weak else ""))
    if weak is None:
        return replace(kept, why=f"the first tokens separate the classes with AUROC {told.auroc:.2f}")
    if not written_answers:
        return replace(kept, why=f"{weak}; written answers were not asked for")
    by_answers = answer_measure(model, refusals)
    if by_answers is None:
        return replace(kept, why=f"{weak}; the tokenizer does not know the words of written answers")
    if not by_answers.fits(model, [*a.sequences, *b.sequences]):
        return replace(kept, why=f"{weak}; written answers do not fit in the model's window")
    c, d = (by_answers.measure(model, part.sequences, batch_size=batch_size) for part in parts)
    answered = tells(c.scores, d.scores, refused)
    kept = replace(kept, answers=answered)
    compared = f"AUROC {answered.auroc:.2f} against {told.auroc:.2f}"
    if not answered.auroc > told.auroc:
        return replace(kept, why=f"{weak}, but written answers tell no more ({compared})")
    why = f"{weak}; written answers tell more ({compared})"
    return replace(kept, taken=by_answers, why=why, harmful=c, harmless=d)


def _tokens(
    model: TransformerBridge,
    harmful: Float[Tensor, "a vocabulary"],
    harmless: Float[Tensor, "b vocabulary"],
    own: OwnRefusals | None,
) -> RefusalTokens:
    def decode(token: int) -> str:
        return str(model.tokenizer.decode([token]))

    found = None if own is None else openings_of(own.openings, decode=decode)
    return found or derive_refusal_tokens(harmful, harmless, decode=decode)


def measure_lines(facts: Mapping[str, Any]) -> list[str]:
    """Sentences on the measure in a run's record, from what :meth:`mechsafety.sweeps.sweep.Sweep.facts` gave."""
    measure = facts.get("refusal_measure")
    if measure is None:  # a run from before measures were compared
        return []
    taken = {"tokens": "first tokens", "answers": "written answers"}
    by = taken.get(measure["taken"], "a function of one's own")
    lines = [f"Refusal scores by {by}: {measure['why']}"]
    for kind, name in taken.items():
        told = measure[kind]
        if told is not None:
            of = (
                "all harmful prompts"
                if told["n_refused"] is None
                else f"the {told['n_refused']} that the model refuses"
            )
            lines.append(
                f"By {name} {percent(told['harmful_above'])} of {told['n_harmful']} harmful prompts score above and "
                f"{percent(told['harmless_below'])} of {told['n_harmless']} harmless ones below the middle of the "
                f"class means; AUROC {two_digits(told['auroc'])}, of {of} against the harmless ones"
            )
    if measure["written"]:
        lines += [f"{name.capitalize()}: {_quoted(texts)}" for name, texts in measure["written"].items()]
    if (stability := facts["token_stability"]) is not None:
        lines.append(
            f"By scores of {stability['size']} of the {stability['n_tokens']} refusal tokens another candidate is "
            f"picked in {percent(stability['changed'])} of {stability['sets']} sets, and none passes in "
            f"{percent(stability['none'])}"
        )
    elif measure["taken"] == "tokens" and len(facts["refusal_tokens"]["ids"]) == 1:
        lines.append("There is one refusal token: half of them cannot be tried")
    return lines


def _quoted(texts: Sequence[str]) -> str:
    return ", ".join(json.dumps(text, ensure_ascii=False) for text in texts)
