"""Any hooked model, edited or not, as lm-eval's ``LM``.

On an unedited model every number is that of lm-eval's own ``HFLM`` (tested); with an edit, its positions mean here
what they mean elsewhere: the context is the prompt, and the continuation that is scored is what the model would
have generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mechsafety.core.errors import MechsafetyError, needs
from mechsafety.core.names import CONTEXTS_AT_ONCE
from mechsafety.core.progress import bar
from mechsafety.edits.interventions import Edit, digest, require_fits
from mechsafety.generation.bodies import body_under
from mechsafety.generation.completions import Sampling
from mechsafety.generation.continuations import Request, alone, continuations
from mechsafety.generation.scoring import continuation_logits
from mechsafety.integrations.extras import name_of, variant
from mechsafety.models.chat import batches, device_of, own_tokenizer, pad_token, render_chat
from mechsafety.models.chat_settings import chat_text
from mechsafety.models.loading import known_fingerprint, window
from mechsafety.models.thought_reading import thought_budget

with needs("lm-eval"):
    from lm_eval.api.model import CacheHook, TemplateLM
    from lm_eval.models.utils import has_bos_prefix, normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

DEFAULT_WINDOW = 2048
MAX_GENERATED = 256
"""lm-eval's own default for tasks that do not limit the length of an answer."""
_OWNER = "mechsafety: the model whose answers these are"
_GENERATION = {"do_sample", "temperature", "top_p", "until", "max_gen_toks"}

Scored = tuple[float, bool]
Pair = tuple[tuple[str, str] | None, list[int], list[int]]


class EditedLM(TemplateLM):
    """A hooked model under ``edit`` as lm-eval's ``LM``: what ``simple_evaluate(model=...)`` takes.

    ``max_length`` is the model's window unless given; longer contexts lose their beginning, as in ``HFLM``.
    ``seed`` is for tasks that draw tokens. lm-eval's response cache (``use_cache``) knows no models, only requests:
    a cache that another model or edit has filled is refused.
    """

    def __init__(
        self,
        model: TransformerBridge,
        edit: Edit | None = None,
        *,
        batch_size: int = CONTEXTS_AT_ONCE,
        max_length: int | None = None,
        seed: int = 0,
    ) -> None:
        if batch_size < 1 or (max_length is not None and max_length < 2):
            raise MechsafetyError(
                f"batch_size {batch_size} must be 1 at least, and max_length {max_length} 2 at least"
            )
        if edit is not None:
            require_fits(model, edit)
        super().__init__()
        self.hooked_model = model
        self.edit = edit
        self.tokenizer: Any = own_tokenizer(model)
        self.batch_size = batch_size
        self.max_length = max_length or window(model) or DEFAULT_WINDOW
        self.max_gen_toks = MAX_GENERATED
        self.seed = seed
        self._device = device_of(model)

    # -- what a model is --------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """``<model>@<hash of edit and chat settings>``, without the hash for the model as it is."""
        return name_of(self.hooked_model) + variant(self.edit, chat_text(self.hooked_model))

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        start = self.tokenizer.bos_token_id
        return self.eot_token_id if start is None else int(start)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval records of the model beside its results."""
        return {
            "model_name": self.name,
            "model_dtype": str(next(self.hooked_model.parameters()).dtype),
            "model_fingerprint": known_fingerprint(self.hooked_model),
            "edit": self.edit.describe() if self.edit is not None else None,
            "edit_sha256": digest(self.edit) if self.edit is not None else None,
        }

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Refuse a response cache that holds another model's answers."""
        stored: Any = cache_hook.dbdict
        if stored is not None:
            ours = f"{self.name} {known_fingerprint(self.hooked_model)}".strip()
            owner = stored.get(_OWNER) if len(stored) else ours
            if owner != ours:
                raise MechsafetyError(
                    f"this response cache holds answers of {owner or 'an unknown model'}, not of {ours}: lm-eval "
                    "would give them for this model's; name another use_cache"
                )
            stored[_OWNER] = ours
        super().set_cache_hook(cache_hook)

    # -- text to tokens ---------------------------------------------------------------------------

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens of ``string``; the tokenizer's own start token is added unless the string has it already."""
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **options))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation in the model's own template; without a generation prompt its last turn is left open."""
        return render_chat(
            self.hooked_model,
            chat_history,
            answer_next=add_generation_prompt,
            last_turn_open=not add_generation_prompt,
        )

    # -- log-likelihoods --------------------------------------------------------------------------

    def _loglikelihood_tokens(self, requests: Sequence[Pair], **_: Any) -> list[Scored]:
        """(log P(continuation | context), whether greedy decoding gives it), in nats.

        Requests of one context run it once.
        """
        cut = [self._cut(context, continuation) for _, context, continuation in requests]
        contexts = list(dict.fromkeys(tuple(context) for context, _ in cut))
        wanted: dict[tuple[int, ...], list[int]] = {context: [] for context in contexts}
        for number, (context, _continuation) in enumerate(cut):
            wanted[tuple(context)].append(number)
        out: dict[int, Scored] = {}
        with (
            alone(self.hooked_model),
            torch.inference_mode(),
            body_under(self.hooked_model, self.edit) as body,
            bar("log-likelihoods", total=len(requests), unit="request") as progress,
        ):
            for batch in batches(self.hooked_model, contexts, batch_size=self.batch_size):
                owners = [(place, n) for place, row in enumerate(batch.rows) for n in wanted[contexts[row]]]
                asked = [(place, cut[n][1]) for place, n in owners]
                pad = pad_token(self.hooked_model)
                for place, logits in continuation_logits(
                    body, batch, asked, pad=pad, batch_size=self.batch_size
                ):
                    number = owners[place][1]
                    out[number] = scored = _judged(torch.log_softmax(logits.float(), -1), asked[place][1])
                    if (named := requests[number][0]) is not None:
                        self.cache_hook.add_partial("loglikelihood", named, scored)
                progress.update(len(owners))
        return [out[number] for number in range(len(requests))]

    def _cut(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[list[int], list[int]]:
        """The context without what does not fit in the window: its last token's prediction needs no place."""
        if not context or not continuation or len(continuation) > self.max_length:
            raise MechsafetyError(
                f"a context of {len(context)} tokens and a continuation of {len(continuation)}: neither may be "
                f"empty, and the continuation must fit in the window of {self.max_length}"
            )
        return list(context[-(self.max_length + 1 - len(continuation)) :]), list(continuation)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        """log P(text) of whole texts, in windows that overlap by no token; the start token is the prompt."""
        windows: list[Pair] = []
        counts: list[int] = []
        for (text,) in (request.args for request in requests):
            cuts = [
                make_disjoint_window(pair)
                for pair in get_rolling_token_windows(
                    token_list=self.tok_encode(text),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
            ]
            windows += [(None, list(context), list(continuation)) for context, continuation in cuts]
            counts.append(len(cuts))
        scored = iter(self._loglikelihood_tokens(windows))
        out: list[float] = []
        for request, count in zip(requests, counts, strict=True):
            out.append(float(sum(next(scored)[0] for _ in range(count))))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, out[-1])
        return out

    # -- generation -------------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
        """Answers up to a stop string or the end of the text, greedy unless the task draws; without thoughts, whose
        budget is their own."""
        asked = [self._request(number, *request.args) for number, request in enumerate(requests)]
        with alone(self.hooked_model):
            found = continuations(self.hooked_model, asked, edit=self.edit, batch_size=self.batch_size)
        out = [answer.text for answer in found]
        for request, text in zip(requests, out, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return out

    def _request(self, number: int, context: str, options: dict[str, Any]) -> Request:
        chosen: dict[str, Any] = dict(normalize_gen_kwargs(options, self.max_gen_toks))
        if unknown := sorted(set(chosen) - _GENERATION):
            raise MechsafetyError(
                f"generation option {', '.join(unknown)} of a task is not known here: {', '.join(sorted(_GENERATION))}"
            )
        until = chosen.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        thought = thought_budget(self.hooked_model)
        room = self.max_length - int(chosen["max_gen_toks"]) - thought
        if room < 1:
            more = f", {thought} more for its thought," if thought else ""
            raise MechsafetyError(
                f"a task asks for {chosen['max_gen_toks']} tokens{more} of a model with a window of {self.max_length}: "
                "none are left for the question; set max_gen_toks in gen_kwargs"
            )
        # HFLM asks for a BOS alone here, where log-likelihoods take an EOS in its place.
        begun = has_bos_prefix(context, self.tokenizer.bos_token)
        encoded = self.tokenizer.encode(context, **({"add_special_tokens": False} if begun else {}))
        tokens = list(encoded)[-room:] or [self.prefix_token_id]
        sampling = None
        if chosen["do_sample"]:
            sampling = Sampling(temperature=chosen["temperature"] or 1.0, top_p=chosen.get("top_p", 1.0))
        return Request(
            tokens=tuple(tokens),
            max_new_tokens=int(chosen["max_gen_toks"]),
            stop=tuple(stop for stop in stops if stop),
            sampling=sampling,
            seed=self.seed * 1_000_003 + number,
        )


def _judged(log_probs: Tensor, tokens: Sequence[int]) -> Scored:
    target = torch.tensor(tokens, device=log_probs.device)
    total = log_probs.gather(-1, target[:, None]).sum()
    return float(total), bool((log_probs.argmax(-1) == target).all())
