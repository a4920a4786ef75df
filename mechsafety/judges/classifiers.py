"""What the adapters for published classifiers share: loading, one prompt template, greedy answers, scores.

The classifiers are fine-tuned language models that answer in a word or a few lines. Most judge harm, not refusal, and
the two are different axes: a harmless answer is neither a refusal nor compliance with something harmful. The mapping
that all adapters declare: harmful -> ``compliance`` with the tag ``harmful``; not harmful -> ``unparsed`` with the
tag ``not_harmful``, because it can be a refusal or an innocent answer; WildGuard alone reads refusal itself. Rates of
harm are to be counted from the tags.

The models are loaded through transformers in their own format, as bfloat16 where the device computes it natively; no
code from the hub is run. What is sent differs from the published harnesses in two things: thoughts, copies of the
prompt and control tokens are taken out of the answer first (:mod:`mechsafety.judges.normalise`), and what reads as a
turn, a field or a verdict in either text is broken (:mod:`mechsafety.judges.neutral`), so that an answer cannot end the
question.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Label, Response, Verdict
from mechsafety.judges.answers import SHOWN
from mechsafety.judges.asking import AskingJudge, OnVerdict, Usage
from mechsafety.judges.neutral import neutral_digest, neutralise
from mechsafety.judges.normalise import normalise, tidy
from mechsafety.models.rendering import control_strings
from mechsafety.runs.folder import computing_versions

if TYPE_CHECKING:
    from mechsafety.models.specs import ModelSpec

Harm = Literal["harmful", "not_harmful"]
_TOKENIZER = "tokenizer_config.json"


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A greedy answer. ``shares`` holds P(yes) / (P(yes) + P(no)) at each token of it that is one of the two words."""

    text: str
    shares: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One answer of a classifier as a label with its detail."""

    label: Label
    tags: tuple[str, ...]
    detail: Mapping[str, object] = field(default_factory=dict)


def harm_reading(harm: Harm, *, detail: Mapping[str, object]) -> Reading:
    """The declared mapping of the harm axis."""
    return Reading(label="compliance" if harm == "harmful" else "unparsed", tags=(harm,), detail=detail)


def out_of_form(answer: str) -> Reading:
    """An answer out of form; its beginning is kept."""
    return Reading(label="unparsed", tags=("unreadable",), detail={"answer": answer.strip()[:SHOWN]})


class Classifier:
    """A causal language model with its tokenizer, used for greedy answers and scores of its next word."""

    def __init__(self, module: Any, tokenizer: Any, *, fingerprint: str = "", name: str = "") -> None:
        from transformers import GenerationConfig

        self.module = module.eval().requires_grad_(False)
        self.module.mechsafety_name = name  # for messages
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint
        named = module.generation_config.eos_token_id
        ends = {named} if isinstance(named, int) else set(named or ())
        ends |= {tokenizer.eos_token_id} - {None}
        # A config of its own: Hugging Face fills gaps from the model's, sampling settings included.
        self.module.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=sorted(ends) or None, pad_token_id=tokenizer.pad_token_id
        )

    @property
    def room(self) -> int | None:
        """Tokens of question and answer together; None where the configuration names no limit."""
        return getattr(self.module.config, "max_position_embeddings", None)

    @cached_property
    def control_strings(self) -> tuple[str, ...]:
        """All text that could end a turn of the template, or begin one."""
        return control_strings(self.tokenizer)

    def first_tokens(self, *words: str) -> list[int]:
        """The tokens with which a word can begin, in lower case or capitalised, with or without a blank."""
        forms = [blank + form for word in words for form in (word, word.capitalize()) for blank in ("", " ")]
        ids = [self.tokenizer(form, add_special_tokens=False)["input_ids"][:1] for form in forms]
        return sorted({i[0] for i in ids if i} - {self.tokenizer.unk_token_id})

    def cut(self, text: str, tokens: int) -> str:
        """The beginning of ``text`` that holds at most ``tokens`` tokens."""
        spans = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return text if len(spans) <= tokens else text[: spans[tokens - 1][1]]

    def answer(
        self, questions: Sequence[Sequence[int]], *, new_tokens: int, yes: str, no: str
    ) -> list[Reply]:
        """Each question's greedy answer, in their order; they run as one batch, padded on the left to a fixed width.

        Raises :class:`NotFiniteError` where logits are NaN or infinite, as :meth:`next_word` does.
        """
        import torch

        from mechsafety.models.finite import finite_logits

        both = self.first_tokens(yes), self.first_tokens(no)
        sides = [sorted(set(a) - set(b)) for a, b in (both, both[::-1])]
        batch = self._batch(questions)
        with torch.inference_mode(), finite_logits(self.module):
            out = self.module.generate(
                input_ids=batch.ids,
                attention_mask=batch.mask,
                max_new_tokens=new_tokens,
                return_dict_in_generate=True,
                output_logits=True,
            )
        new = out.sequences[:, batch.ids.shape[1] :].tolist()
        logits = torch.stack(out.logits, dim=1).float()
        pro, con = (logits[..., side].logsumexp(-1) for side in sides)
        replies = []
        for tokens, share in zip(new, torch.sigmoid(pro - con).tolist(), strict=True):
            watched = [s for t, s in zip(tokens, share, strict=True) if t in sides[0] or t in sides[1]]
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            replies.append(Reply(text=text, shares=tuple(watched)))
        return replies

    def next_word(
        self, questions: Sequence[Sequence[int]], words: Sequence[str]
    ) -> tuple[list[list[float]], list[float]]:
        """P(word | one of ``words``) for each question, and the mass of all of them before that division.

        Each word must be one token of the vocabulary. The questions run as one batch, as in :meth:`answer`.
        """
        import torch

        from mechsafety.models.finite import finite_logits

        vocabulary = self.tokenizer.get_vocab()
        if missing := [word for word in words if word not in vocabulary]:
            raise MechsafetyError(
                f"the tokenizer has no token for {missing[0]!r}: this is another kind of classifier"
            )
        ids = [vocabulary[word] for word in words]
        batch = self._batch(questions)
        with torch.inference_mode(), finite_logits(self.module):
            out = self.module(
                input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, logits_to_keep=1
            )
        log_probs = torch.log_softmax(out.logits[:, -1].double(), dim=-1)[:, ids]
        return log_probs.softmax(-1).tolist(), log_probs.exp().sum(-1).tolist()

    def plan(self, lengths: Sequence[int], *, new_tokens: int) -> Iterator[tuple[list[int], list[int]]]:
        """Rows whose questions run together, and the same filled up to a batch of fixed shape
        (:mod:`mechsafety.generation.fixed_batches`); one row at a time where rows of a batch could change each other.
        """
        from mechsafety.generation.fixed_batches import fixed_plan, mixes_rows, wide
        from mechsafety.models.rope_lengths import may_read_in_parts

        fixed = not (mixes_rows(self.module.config) or getattr(self.module, "_is_stateful", False))
        together = [
            row
            for row, n in enumerate(lengths)
            if fixed and may_read_in_parts(self.module, wide(n) + new_tokens)
        ]
        for rows, filled in fixed_plan([(wide(lengths[row]),) for row in together], self.module.device):
            yield [together[place] for place in rows], [together[place] for place in filled]
        yield from (([row], [row]) for row in sorted(set(range(len(lengths))) - set(together)))

    def _batch(self, questions: Sequence[Sequence[int]]) -> Any:
        from mechsafety.generation.fixed_batches import wide
        from mechsafety.models.chat import pad_left

        pad = self.tokenizer.pad_token_id or 0
        width = max(map(len, questions))
        return pad_left(questions, pad=pad, width=wide(width) if len(questions) > 1 else width).to(
            self.module.device
        )


class ClassifierJudge(AskingJudge):
    """A published classifier as a judge: one verdict a response. What differs is the question and its reading.

    Verdict and scores do not depend on which other responses are in the call, in any number format.
    """

    markers: tuple[str, ...] = ()
    """Text of the template that an answer must not contain."""
    answer_tokens: int | None = None
    """Tokens of the answer that are shown, where the published harness cuts it."""
    new_tokens: int = 1
    adds_special_tokens: bool = True

    def __init__(self, name: str, classifier: Classifier) -> None:
        super().__init__()
        self.name = name
        self.classifier = classifier

    @abstractmethod
    def question(self, prompt: str, answer: str) -> str:
        """The filled template."""

    @abstractmethod
    def read(self, questions: Sequence[Sequence[int]]) -> list[Reading]:
        """The classifier's reply to each tokenised question of one batch."""

    @property
    def fingerprint(self) -> dict[str, object] | None:
        if not self.classifier.fingerprint:
            return None
        template = json.dumps([self.question("PROMPT", "ANSWER"), self.markers, neutral_digest()])
        return {
            "judge": self.name,
            "revision": {
                "weights": self.classifier.fingerprint,
                "dtype": str(self.classifier.module.dtype),
                "versions": computing_versions(),
            },
            "template": hashlib.sha256(template.encode()).hexdigest(),
            "parameters": {"new_tokens": self.new_tokens, "answer_tokens": self.answer_tokens},
        }

    def _ask(self, responses: Sequence[Response], *, on_verdict: OnVerdict) -> list[Verdict]:
        from mechsafety.core.progress import bar

        questions = [self._tokens(r) for r in responses]
        verdicts: dict[int, Verdict] = {}

        def settle(row: int, reading: Reading) -> None:
            verdicts[row] = Verdict(
                id=responses[row].id,
                judge=self.name,
                label=reading.label,
                tags=reading.tags,
                detail=reading.detail,
            )
            on_verdict(verdicts[row])

        for row, tokens in enumerate(map(len, questions)):
            if (room := self.classifier.room) is not None and tokens + self.new_tokens > room:
                settle(
                    row,
                    Reading(label="unparsed", tags=("too_long",), detail={"tokens": tokens, "room": room}),
                )
        fits = [row for row in range(len(questions)) if row not in verdicts]
        with bar(self.name, total=len(fits), unit="response") as progress:
            lengths = [len(questions[row]) for row in fits]
            for places, filled in self.classifier.plan(lengths, new_tokens=self.new_tokens):
                readings = self.read([questions[fits[place]] for place in filled])
                for place, reading in zip(places, readings, strict=False):
                    settle(fits[place], reading)
                progress.update(len(places))
        self.ledger.add(
            Usage(
                fresh=len(responses), calls=len(fits), prompt_tokens=sum(len(questions[row]) for row in fits)
            )
        )
        return [verdicts[row] for row in range(len(questions))]

    def _tokens(self, response: Response) -> list[int]:
        answer = self._plain(normalise(response.text, prompt=response.prompt).answer)
        if self.answer_tokens is not None:
            answer = self.classifier.cut(answer, self.answer_tokens)
        text = self.question(self._plain(tidy(response.prompt).strip()), answer)
        return list(self.classifier.tokenizer(text, add_special_tokens=self.adds_special_tokens)["input_ids"])

    def _plain(self, text: str) -> str:
        return neutralise(text, special=(*self.classifier.control_strings, *self.markers))


def load_classifier(spec: str, *, dtype: str = "auto", device: str = "auto") -> Classifier:
    """Load a folder, or a hub id with an optional ``@REVISION``: a whole model, or a LoRA adapter with its base.

    Raises :class:`MechsafetyError` for a missing folder or file, a gated model without a token, a hub that cannot be
    reached, an adapter that does not fit, and too little memory.
    """
    from mechsafety.models import specs, weights
    from mechsafety.models.adapters import adapter_folder, merge_adapter, weights_fingerprint
    from mechsafety.models.filled_weights import require_embedding_rows
    from mechsafety.models.hardware import resolve_device, resolve_dtype

    parsed = specs.parse_spec(spec)
    where = resolve_device(device)
    number = resolve_dtype(dtype, where)
    adapter = adapter_folder(parsed.adapter) if parsed.adapter else _adapter_alone(spec, parsed)
    base = specs.parse_spec(_base_of(adapter)) if adapter and not parsed.adapter else parsed
    folder, _ = specs.locate(base)
    module: Any = weights.load_weights(
        spec, base, folder, dtype=number, device=where, trust_remote_code=False
    )
    beside = adapter is not None and (adapter / _TOKENIZER).is_file()
    tokenizer = weights.load_tokenizer(
        spec, base if not beside else parsed, str(adapter) if beside else folder, trust_remote_code=False
    )
    require_embedding_rows(module, tokenizer, source=spec)
    if adapter is None:
        fingerprint = weights_fingerprint(module)
    else:
        module, fingerprint = merge_adapter(module, adapter, spec)
    return Classifier(module, tokenizer, fingerprint=fingerprint, name=spec)


def _adapter_alone(spec: str, parsed: ModelSpec) -> Path | None:
    """The folder of the adapter, where ``parsed`` names one and no model; fetched from the hub if it lies there."""
    from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    from mechsafety.core.progress import quiet
    from mechsafety.models import specs
    from mechsafety.models.gguf import PACKAGED

    path = Path(parsed.base).expanduser()
    if path.exists() or parsed.base == PACKAGED or parsed.base.count("/") != 1:
        found = path.is_dir() and not (path / "config.json").is_file()
        return path if found and (path / "adapter_config.json").is_file() else None
    try:
        with quiet():
            hf_hub_download(parsed.base, "adapter_config.json", revision=parsed.revision)
            wanted = ["adapter_*", "*token*", "*.model"]
            return Path(snapshot_download(parsed.base, revision=parsed.revision, allow_patterns=wanted))
    except LocalEntryNotFoundError as error:  # the hub cannot be reached; a whole model may be in the cache
        if isinstance(try_to_load_from_cache(parsed.base, "config.json", revision=parsed.revision), str):
            return None
        raise specs.load_error(spec, parsed, error) from error
    except EntryNotFoundError:
        return None  # a whole model
    except Exception as error:
        raise specs.load_error(spec, parsed, error) from error


def _base_of(adapter: Path) -> str:
    try:
        base = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))[
            "base_model_name_or_path"
        ]
    except (ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise MechsafetyError(
            f"adapter {str(adapter)!r} does not name the model it belongs to; write BASE+{adapter}"
        )
    return base
