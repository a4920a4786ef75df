"""Models of mechsafety, edited or not, as models of inspect_ai.

A model's name carries the hash of its edit, and of chat settings that are not the default ones,
``mechsafety/<model>@<hash>``: inspect_ai knows a model by its name
wherever it keeps one or its answers (``get_model``'s memo, the response cache of ``cache=True``, logs), and a name
that does not distinguish them gives one model the other's answers.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from mechsafety.core.errors import MechsafetyError, first_lines, needs
from mechsafety.edits.expressions import parse_edit
from mechsafety.edits.interventions import Edit, require_fits
from mechsafety.generation.completions import Sampling, continued_text
from mechsafety.generation.continuations import Continuation, Request, alone, continuations, first_stop
from mechsafety.integrations.batching import Batches
from mechsafety.integrations.extras import HASH_LENGTH, name_of, variant
from mechsafety.models.chat import answer_prefix, render_chat, tokenize_piece, tokenize_text
from mechsafety.models.chat_settings import ChatSettings, chat_text
from mechsafety.models.loading import load_model, window
from mechsafety.models.thought_reading import thought_budget

with needs("inspect"):
    from inspect_ai.model import (
        ChatCompletionChoice,
        ChatMessage,
        ChatMessageAssistant,
        Content,
        ContentReasoning,
        ContentText,
        GenerateConfig,
        Logprob,
        Logprobs,
        Model,
        ModelAPI,
        ModelOutput,
        ModelUsage,
        StopReason,
        TopLogprob,
        modelapi,
    )

    # What inspect_ai itself keeps the cached answers of several epochs apart by.
    from inspect_ai.model._cache import epoch as running_epoch
    from inspect_ai.tool import ToolChoice, ToolInfo

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

DEFAULT_MAX_TOKENS = 256
DEFAULT_BATCH = 32
_HASHED = re.compile(rf"(.+)@([0-9a-f]{{{HASH_LENGTH}}})")
_USED = {
    "max_tokens",
    "temperature",
    "top_p",
    "stop_seqs",
    "seed",
    "logprobs",
    "top_logprobs",
    "system_message",
}
_INSPECTS_OWN = {
    *("max_retries", "timeout", "attempt_timeout", "stream_idle_timeout", "max_connections"),
    *(
        "adaptive_connections",
        "cache",
        "fail_on_refusal",
        "max_tool_output",
        "cache_prompt",
        "reasoning_history",
    ),
}


class MechsafetyAPI(ModelAPI):
    """The provider. Made by ``get_model("mechsafety/<spec>", edit="ablate(...)")`` or :func:`inspect_model`.

    ``edit`` is an expression or a file's name, as ``mechsafety generate --edit`` takes it. ``model_path`` is
    loaded in place of the name, which is then free to choose. A name that ends in a hash is checked against the edit
    and the chat settings. An unedited model is loaded when it first answers, so that a log can be read and scored
    anew without it.

    The other options are those of :func:`load_model`; the chat settings are ``system_prompt``, ``chat_arg`` (key=value,
    several divided by commas, or a mapping), ``answer_prefix``, ``thinking`` and ``max_thought_tokens``. What a model
    that is left thinking thinks becomes the reasoning of its message, and is not among ``max_tokens``.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 - inspect_ai's signature
        *,
        edit: str | Edit | None = None,
        model_path: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        device_map: str | None = None,
        max_memory: str | None = None,
        template: str | None = None,
        date: str | None = None,
        batch_size: int = DEFAULT_BATCH,
        chat_arg: str | Sequence[str] | Mapping[str, Any] = (),
        **chat: Any,
    ) -> None:
        if not isinstance(edit, str | None):
            raise MechsafetyError(
                f"get_model's memo cannot distinguish two edits that are objects ({edit!r}): use "
                "mechsafety.integrations.inspect_provider.inspect_model(model, edit=edit), or name the edit by an "
                "expression or a file"
            )
        if base_url is not None or api_key is not None:
            raise MechsafetyError("mechsafety models run here: leave base_url and api_key out")
        if batch_size < 1:
            raise MechsafetyError(f"batch_size is {batch_size}; 1 at least")
        super().__init__(model_name=model_name, config=config)
        settings, hashed = _chat(chat_arg, chat), _HASHED.fullmatch(model_name)
        self._changed = edit is not None or not settings.is_default
        self._spec = model_path or (hashed[1] if hashed and self._changed else model_name)
        self._options: dict[str, Any] = {
            **{"dtype": dtype, "device": device, "device_map": device_map, "max_memory": max_memory},
            **{"template": template, "date": date, "chat": settings},
        }
        self._batch_size = batch_size
        self._batches = Batches(self._continue, size=batch_size)
        self._loaded: tuple[TransformerBridge, Edit | None] | None = None
        if edit is not None:
            model = load_model(self._spec, **self._options)
            self._loaded = (model, parse_edit(edit, model=model))
            require_fits(*self._loaded)
        if self._changed:
            self.model_name = self._named(hashed[1] if hashed else model_name, settings.as_text())
            if hashed and self.model_name != model_name:
                raise MechsafetyError(
                    f"edit {edit!r} and chat settings make this model {self.model_name!r}, not {model_name!r}: "
                    "leave the hash out, or give what it belongs to"
                )

    def adopt(self, model: TransformerBridge, edit: Edit | None) -> None:
        """Answer with ``model`` under ``edit`` from now on."""
        if edit is not None:
            require_fits(model, edit)
        self._loaded = (model, edit)
        self.model_name = self._named(self.model_name, chat_text(model))

    def _named(self, name: str, chat: str) -> str:
        return name + variant(self._loaded[1] if self._loaded else None, chat)

    def _model(self) -> tuple[TransformerBridge, Edit | None]:
        if self._loaded is None:
            try:
                self._loaded = (load_model(self._spec, **self._options), None)
            except MechsafetyError as error:
                if self._changed or not _HASHED.fullmatch(self.model_name):
                    raise
                raise MechsafetyError(
                    f"{self.model_name!r} names a model by the hash of its edit or chat settings: give these too, with "
                    f"edit=..., or -M edit=... ({error})"
                ) from None
        return self._loaded

    def _continue(self, requests: list[Request]) -> list[Continuation]:
        model, edit = self._model()
        with alone(model):
            return continuations(model, requests, edit=edit, batch_size=self._batch_size)

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,  # noqa: ARG002 - inspect_ai's signature
        config: GenerateConfig,
    ) -> ModelOutput:
        """Answer the conversation. Options that have no effect here raise :class:`MechsafetyError`."""
        _require_supported(config, tools)
        started = time.perf_counter()
        model, _ = self._model()
        request, cut_by_window = _request(model, input, config)
        answer = await self._batches.submit(request)
        reason: StopReason = "stop"
        if answer.finish == "length":
            reason = "model_length" if cut_by_window else "max_tokens"
        message = ChatMessageAssistant(
            content=_content(model, request, answer), model=self.model_name, source="generate"
        )
        n_in, n_out = len(request.tokens), len(answer.tokens)
        return ModelOutput(
            model=self.model_name,
            choices=[
                ChatCompletionChoice(message=message, stop_reason=reason, logprobs=_log_probs(model, answer))
            ],
            usage=ModelUsage(
                input_tokens=n_in,
                output_tokens=n_out,
                total_tokens=n_in + n_out,
                reasoning_tokens=answer.n_thought_tokens or None,
            ),
            time=time.perf_counter() - started,
        )

    async def count_text_tokens(self, text: str) -> int:
        return len(await self.tokenize(text))

    async def tokenize(self, text: str) -> list[int]:
        model, _ = self._model()
        return tokenize_piece(model, text)

    def max_tokens(self) -> int | None:
        return DEFAULT_MAX_TOKENS

    def max_connections(self) -> int:
        return self._batch_size

    def collapse_user_messages(self) -> bool:
        return True

    def collapse_assistant_messages(self) -> bool:
        return True


@modelapi(name="mechsafety")
def mechsafety() -> type[ModelAPI]:
    """What inspect_ai's registry holds."""
    return MechsafetyAPI


def inspect_model(
    model: TransformerBridge,
    *,
    edit: Edit | None = None,
    name: str | None = None,
    batch_size: int = DEFAULT_BATCH,
    config: GenerateConfig | None = None,
) -> Model:
    """A loaded model as inspect_ai's, under ``edit``: what ``eval(task, model=...)`` takes.

    The name is ``mechsafety/<name>@<hash>``; ``name`` is by default the spec that the model was loaded by, for a
    folder its last part with eight digits of the weights' fingerprint. Makes a new one at each call, which costs
    nothing: the weights are shared, and requests to models that share them wait for one another.
    """
    config = config or GenerateConfig()
    make: Any = mechsafety  # what the decorator leaves there makes a registered MechsafetyAPI
    api: MechsafetyAPI = make(model_name=name or name_of(model), config=config, batch_size=batch_size)
    api.adopt(model, edit)
    found = Model(api, config)
    api.qualified_model_name = str(found)
    return found


def _require_supported(config: GenerateConfig, tools: list[ToolInfo]) -> None:
    if tools:
        raise MechsafetyError("mechsafety models call no tools: use a task and a solver without them")
    given = config.model_dump(exclude_none=True)
    if config.num_choices == 1:
        given.pop("num_choices")
    unknown = sorted(name for name in set(given) - _USED - _INSPECTS_OWN if given[name] not in (False, []))
    if unknown:
        raise MechsafetyError(
            f"mechsafety models have no {', '.join(unknown)}: leave it out; there are {', '.join(sorted(_USED))}"
        )
    if config.temperature and config.seed is None:
        raise MechsafetyError(
            f"temperature {config.temperature:g} draws tokens: give a seed too, or temperature 0 for the likeliest"
        )
    if config.top_p is not None and config.top_p < 1 and not config.temperature:
        raise MechsafetyError(
            f"top_p {config.top_p:g} is about drawing tokens: give a temperature above 0 too"
        )


def _request(
    model: TransformerBridge, messages: list[ChatMessage], config: GenerateConfig
) -> tuple[Request, bool]:
    """The request, and whether the model's window and not ``max_tokens`` limits it."""
    tokens = tuple(tokenize_text(model, _rendered(model, messages)))
    wanted, most = config.max_tokens or DEFAULT_MAX_TOKENS, window(model)
    thought = thought_budget(model)
    room = wanted if most is None else most - len(tokens) - thought
    if room < 1:
        more = f" with {thought} for its thought" if thought else ""
        raise MechsafetyError(
            f"the conversation has {len(tokens)} tokens{more}, and the model's window {most}: none are left for an "
            "answer"
        )
    sampling = None
    if config.temperature:
        sampling = Sampling(
            temperature=config.temperature, top_p=1.0 if config.top_p is None else config.top_p
        )
    request = Request(
        tokens=tokens,
        max_new_tokens=min(wanted, room),
        stop=tuple(config.stop_seqs or ()),
        sampling=sampling,
        seed=_seed(config.seed or 0, tokens),
        top_logprobs=(config.top_logprobs or 0) if config.logprobs else None,
    )
    return request, room < wanted


def _seed(seed: int, tokens: tuple[int, ...]) -> int:
    """One seed for each conversation and epoch, so that neither epochs nor equal beginnings repeat a draw."""
    named = f"{seed} {running_epoch.get(1)} {tokens}"
    return int.from_bytes(hashlib.sha256(named.encode()).digest()[:7], "big")


def _rendered(model: TransformerBridge, messages: list[ChatMessage]) -> str:
    turns: list[dict[str, str]] = []
    for message in messages:
        content = [] if isinstance(message.content, str) else message.content
        # Earlier thoughts are no part of a conversation: templates leave them out.
        strange = [p.type for p in content if not isinstance(p, ContentText | ContentReasoning)]
        if strange or message.role == "tool":
            raise MechsafetyError(
                f"mechsafety models read text; this conversation holds {strange[0] if strange else 'tool results'}"
            )
        turns.append({"role": message.role, "content": message.text})
    if not turns or turns[-1]["role"] == "assistant":
        raise MechsafetyError("the conversation ends with the model's own words: it must end with the user's")
    try:
        return render_chat(model, turns)
    except TemplateError as error:
        raise MechsafetyError(
            f"the model's chat template does not take this conversation ({first_lines(error)}): some take no system "
            "message"
        ) from None


def _chat(chat_arg: str | Sequence[str] | Mapping[str, Any], given: Mapping[str, Any]) -> ChatSettings:
    """Chat settings by the names that the commands have."""
    from mechsafety.experiments.config import ChatConfig, checked_config

    args = chat_arg.split(",") if isinstance(chat_arg, str) else chat_arg
    arguments = {"template_arguments": args} if args else {}
    return checked_config(ChatConfig, {**given, **arguments}).settings


def _content(model: TransformerBridge, request: Request, answer: Continuation) -> str | list[Content]:
    """The answer, its prefix included, behind the thought before it where there is one."""
    behind = answer.tokens[answer.n_thought_tokens :]
    text = answer.text
    if (prefix := answer_prefix(model)) and not answer.n_thought_tokens:
        whole = continued_text(model, request.tokens, behind, prefix)
        text = whole[: first_stop(whole, request.stop, start=len(prefix))]
    if not answer.thought:
        return text
    return [ContentReasoning(reasoning=answer.thought), ContentText(text=text)]


def _log_probs(model: TransformerBridge, answer: Continuation) -> Logprobs | None:
    if not answer.log_probs:
        return None

    def spelt(token: int) -> str:
        return str(model.tokenizer.decode([token]))

    return Logprobs(
        content=[
            Logprob(
                token=spelt(one.token),
                logprob=one.log_prob,
                top_logprobs=[TopLogprob(token=spelt(t), logprob=value) for t, value in one.top] or None,
            )
            for one in answer.log_probs[answer.n_thought_tokens :]
        ]
    )
