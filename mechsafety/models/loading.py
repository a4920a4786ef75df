"""Loading: a spec in, a TransformerLens model with its tokenizer, chat template and record out.

Specs are those of :mod:`mechsafety.models.specs`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from mechsafety.core.days import checked_day, today
from mechsafety.core.errors import MechsafetyError, first_lines
from mechsafety.core.progress import quiet
from mechsafety.models import rendering
from mechsafety.models.adapters import adapter_folder, merge_adapter, weights_fingerprint
from mechsafety.models.booted import booted_state, nothing_installed
from mechsafety.models.chat_settings import (
    ChatSettings,
    TemplateInput,
    chat_settings,
    record_of,
    require_taken,
    template_input,
)
from mechsafety.models.faithful import require_faithful
from mechsafety.models.filled_weights import require_embedding_rows
from mechsafety.models.hardware import dtype_name, resolve_dtype
from mechsafety.models.layouts import own_adapter
from mechsafety.models.placing import DeviceMap, Memory, as_text, blocks_by_device, resolve_placing
from mechsafety.models.quantised import packed_modules, require_plain
from mechsafety.models.rendering import PLAIN_TEMPLATE as PLAIN_TEMPLATE
from mechsafety.models.specs import locate, parse_spec
from mechsafety.models.templates import set_template
from mechsafety.models.weights import load_config, load_tokenizer, load_weights

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WINDOW_NAMES = ("n_positions", "max_position_embeddings", "n_ctx", "max_seq_len")


@dataclass(frozen=True, kw_only=True, repr=False)
class LoadRecord:
    """How a model was loaded, for the run's manifest.

    ``fingerprint`` identifies the weights whatever dtype they were loaded in; ``processing`` records
    which numerics are in force (Hugging Face's own: no folded norms, no centred weights). ``date`` is the day that the
    chat template writes; None where it writes none. ``chat`` are the chat settings, and how thinking was switched off.
    ``device_map`` is how the model was divided among devices, with the memory of each; ``blocks`` are those on each
    device where there are several.
    """

    spec: str
    source: str
    revision: str | None
    adapter: str | None
    architecture: str
    n_layers: int
    d_model: int
    n_parameters: int
    dtype: str
    device: str
    template: str
    fingerprint: str
    processing: str = "none"
    date: str | None = None
    chat: dict[str, Any] = field(default_factory=dict)
    device_map: str | None = None
    blocks: dict[str, str] | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __repr__(self) -> str:
        return (
            f"LoadRecord({self.spec!r}: {self.architecture}, {self.n_layers} layers, d_model {self.d_model}, "
            f"{self.dtype} on {self.device}, template {self.template})"
        )


def load_model(
    spec: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    device_map: DeviceMap | None = None,
    max_memory: Memory | str | None = None,
    template: str | None = None,
    date: str | None = None,
    chat: ChatSettings | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> TransformerBridge:
    """Load ``spec`` as a TransformerLens model.

    The result is a ``TransformerBridge`` on unprocessed weights: its logits are Hugging Face's. It
    carries ``load_record`` (:class:`LoadRecord`) and the checkpoint's own tokenizer, padding on the left. ``template``
    is one of :data:`mechsafety.models.templates.NAMES` or a Jinja file, instead of the model's own or where it has
    none; ``date`` (2025-03-01) is the day that a template with a date writes, today by default; ``chat`` is how
    prompts are put to the model (:class:`ChatSettings`).

    ``device_map="auto"`` divides a model that does not fit on one device among all GPUs, block by block; ``max_memory``
    (``0=20GiB,1=20GiB``) bounds what each may hold. A mapping names the device of every module.

    Raises :class:`MechsafetyError` for an unknown name, a missing file, a gated model without a token,
    a missing chat template, chat settings that the template does not take, an adapter that does not fit, and too little
    memory.

    Arguments:
        trust_remote_code: Whether code that comes with the checkpoint may run.

    Returns:
        The model, in evaluation mode.

    Example:
        >>> model = ms.load_model("smollm2-135m", dtype="float32", device="cpu")
        >>> model.load_record.spec
        'smollm2-135m'
    """
    parsed, settings = parse_spec(spec), chat_settings(chat)
    day = checked_day(date) if date is not None else today()
    where, placing = resolve_placing(device, device_map, max_memory)
    number = resolve_dtype(dtype, where)
    folder, source = locate(parsed)
    adapter = None if parsed.adapter is None else adapter_folder(parsed.adapter)  # sooner than the weights
    tokenizer = load_tokenizer(spec, parsed, folder, trust_remote_code=trust_remote_code)
    template_name = set_template(spec, tokenizer, template)
    require_taken(settings, tokenizer, source=spec, day=day)
    hf = load_weights(
        *(spec, parsed, folder),
        dtype=number,
        device=where,
        placing=placing,
        trust_remote_code=trust_remote_code,
    )
    require_embedding_rows(hf, tokenizer, source=spec)
    if adapter is None:
        fingerprint = weights_fingerprint(hf)
    else:
        require_plain(hf, "an adapter is merged into the weights")
        hf, fingerprint = merge_adapter(hf, adapter, spec)
    n_parameters = hf.num_parameters()  # booting adds views of joint query-key-value maps
    given = template_input(settings, tokenizer, day=day)
    model = _boot_bridge(spec, hf, tokenizer, day, given)
    record = LoadRecord(
        spec=spec,
        source=source,
        revision=parsed.revision,
        adapter=parsed.adapter,
        architecture=type(hf).__name__,
        n_layers=model.cfg.n_layers,
        d_model=model.cfg.d_model,
        n_parameters=n_parameters,
        dtype=dtype_name(number),
        device=str(where if placing is None else next(model.parameters()).device),
        template=template_name,
        fingerprint=fingerprint,
        date=day if rendering.writes_the_day(tokenizer, given) else None,
        chat=record_of(settings, tokenizer, day=day),
        device_map=as_text(device_map, max_memory),
        blocks=blocks_by_device(model),
    )
    model.__dict__["_mechsafety_chat"] = settings
    object.__setattr__(model, "load_record", record)
    model.__dict__["_mechsafety_as_loaded"] = weights_fingerprint(body_of(model))
    return model


def load_reader(
    spec: str,
    *,
    template: str | None = None,
    date: str | None = None,
    chat: ChatSettings | Mapping[str, Any] | None = None,
) -> Any:
    """What a model reads with, without its weights: an object with its tokenizer and configuration.

    Everything in :mod:`mechsafety.models.chat` and :mod:`mechsafety.prompts.fed` takes it for the model. Raises as
    :func:`load_model` does.
    """
    parsed, settings = parse_spec(spec), chat_settings(chat)
    day = checked_day(date) if date is not None else today()
    folder, _ = locate(parsed)
    tokenizer = load_tokenizer(spec, parsed, folder, trust_remote_code=False)
    set_template(spec, tokenizer, template)
    require_taken(settings, tokenizer, source=spec, day=day)
    config = load_config(spec, parsed, folder)
    reads = {"_mechsafety_tokenizer": tokenizer, "_mechsafety_day": day, "_mechsafety_chat": settings}
    return SimpleNamespace(tokenizer=tokenizer, config=config, **reads)


def load_record(model: TransformerBridge) -> LoadRecord | None:
    """The record :func:`load_model` left on a model; None for a model the user booted."""
    return getattr(model, "load_record", None)


def known_fingerprint(model: Any) -> str:
    """The fingerprint of the weights that :func:`load_model` loaded; of a model of the user's own, those it has now.

    A loaded bridge that ``enable_compatibility_mode`` has processed is the user's own. Such a model has another
    fingerprint than the same file loaded: its parameters have other names, and may be processed.
    """
    record = load_record(model)
    if record is None or getattr(model, "compatibility_mode", False):
        return current_fingerprint(model)
    return record.fingerprint


def current_fingerprint(model: Any) -> str:
    """The fingerprint of the weights that a model has now: that of its file while they are as loaded."""
    now, record = weights_fingerprint(body_of(model)), load_record(model)
    as_loaded = uncompiled(model).__dict__.get("_mechsafety_as_loaded")
    return record.fingerprint if record and now == as_loaded else now


def uncompiled(model: Any) -> Any:
    """The model that ``torch.compile`` was given, or the model itself: hooks are not felt by what it makes of it."""
    return model.__dict__.get("_modules", {}).get("_orig_mod", model)


def is_hooked_transformer(model: Any) -> bool:
    """Whether ``model`` is a user's own ``HookedTransformer`` (transformer-lens before 4.0)."""
    return any(kind.__name__ == "HookedTransformer" for kind in type(uncompiled(model)).__mro__)


def body_of(model: Any) -> Any:
    """What is called for a forward pass: the bridge's Hugging Face module, or the HookedTransformer itself."""
    return uncompiled(model) if is_hooked_transformer(model) else uncompiled(model.original_model)


def architecture(model: Any) -> str:
    """The name of the model's class, for messages."""
    return type(body_of(model)).__name__


def model_name(model: Any) -> str:
    """The spec a model was loaded by, or what its own configuration calls it with eight digits of its fingerprint.

    The digits distinguish two models of one architecture, and a raw one from its processed twin.
    """
    record = load_record(model)
    if record:
        return record.spec
    kind = getattr(model.cfg, "model_name", "") or architecture(model)
    return f"{kind}-{known_fingerprint(model)[:8]}"


def window(model: Any) -> int | None:
    """How many tokens a model, or its body, can attend to by its configuration; None where that is not given."""
    config = model.cfg if is_hooked_transformer(model) else getattr(model, "original_model", model).config
    config = getattr(config, "text_config", None) or config
    found = (getattr(config, name, None) for name in _WINDOW_NAMES)
    return next((int(n) for n in found if n is not None), None)


def embedding_rows(model: Any) -> int | None:
    """How many tokens the embedding of a model, or of its body, has a row for; None where that is not known."""
    if is_hooked_transformer(model):
        return int(model.cfg.d_vocab)
    body = getattr(model, "original_model", model)
    if hasattr(body, "get_input_embeddings"):
        return body.get_input_embeddings().weight.shape[0]
    config = getattr(body, "config", None)
    return None if config is None else int(config.get_text_config().vocab_size)


def generation_twin(model: TransformerBridge) -> PreTrainedModel | None:
    """A plain Hugging Face module tree over the very same parameters, or None.

    It shares every tensor with the bridge, takes no memory, and generates faster because none of its
    modules is wrapped. Made before booting, so only :func:`load_model`'s models have one; and None while the
    user's bridge is another than the one that was booted, which the twin would not feel: with hooks of
    TransformerLens or of torch, with other parameters or modules (an adapter, ``enable_compatibility_mode``).
    """
    return None if _is_hooked(model) or _is_altered(model) else plain_tree(model)


def plain_tree(model: Any) -> Any:
    """The plain modules over the parameters of a model or of its body, whatever hooks these have; None without any."""
    twin = uncompiled(model).__dict__.get("_mechsafety_twin")
    if twin is None:
        return None
    # Moving the bridge moves the parameters, which are the twin's too, and may leave the twin's buffers behind.
    body: Any = getattr(uncompiled(model), "original_model", model)
    theirs = {n.replace("._original_component", ""): b.device for n, b in body.named_buffers()}
    moved = any(b.device != theirs.get(name, b.device) for name, b in twin.named_buffers())
    return None if moved else twin


def _is_hooked(model: Any) -> bool:
    """Whether the user has hooks of their own on the bridge: the twin would not feel them."""
    of_booting = {id(hook) for hook in model.__dict__.get("_mechsafety_hooks_of_booting", ())}
    return any(id(hook) not in of_booting for hook in _hooks_on(model))


def _hooks_on(model: Any) -> list[Any]:
    """The hooks on the hook points; TransformerLens puts some of its own there as it boots (BERT)."""
    points = model.hook_dict.values()
    return [hook for point in points for hook in (*point.fwd_hooks, *point.bwd_hooks)]


def _is_altered(model: Any) -> bool:
    """Whether a loaded bridge has other modules, parameters or torch hooks than it was booted with."""
    booted = model.__dict__.get("_mechsafety_booted")
    twin = model.__dict__.get("_mechsafety_twin")
    return None not in (booted, twin) and booted != booted_state(body_of(model), twin)


def _boot_bridge(
    spec: str, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, day: str, given: TemplateInput
) -> TransformerBridge:
    from transformer_lens.model_bridge import TransformerBridge

    # The last position alone reaches the unembedding as a strided slice, which torch multiplies row by row
    # on the CPU, copying the whole table each time: a hundred times slower than the same numbers in line.
    unembedding = hf.get_output_embeddings()
    if unembedding is not None:
        unembedding.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
    hf.__dict__["mechsafety_name"] = spec  # for messages; the copy has it too
    # Copied before booting, because booting wraps the modules; the memo keeps every tensor shared.
    # Modules with packed weights are shared whole: what unpacks them stands beside the tensors.
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*hf.parameters(), *hf.buffers())}
    shared |= {id(module): module for module in packed_modules(hf)}
    twin = copy.deepcopy(hf, shared)
    asked = _reading(tokenizer, day, given)
    try:
        with quiet(), nothing_installed(), own_adapter(spec, hf):
            model = TransformerBridge.boot_transformers(
                hf.config._name_or_path or spec, hf_model=hf, tokenizer=_to_boot_with(tokenizer)
            )
    except MechsafetyError:
        raise
    except Exception as error:
        raise MechsafetyError(
            f"TransformerLens cannot boot {spec!r} ({type(hf).__name__}): "
            # Behind it all names of architectures follow.
            f"{first_lines(error).partition(' Available architectures')[0]}"
        ) from error
    if not hasattr(model, "blocks"):
        raise MechsafetyError(
            f"{spec!r} ({type(hf).__name__}) is no list of blocks to TransformerLens, so that its layers have no "
            "names: it is not supported"
        )
    for parameter in (*model.parameters(), *twin.parameters()):
        parameter.requires_grad_(False)
    model.__dict__["_mechsafety_twin"] = hf.__dict__["_mechsafety_twin"] = twin
    require_faithful(spec, hf, twin, most=window(hf))
    model.__dict__["_mechsafety_booted"] = booted_state(body_of(model), twin)
    model.__dict__["_mechsafety_hooks_of_booting"] = _hooks_on(model)
    _give_tokenizer(model, tokenizer, day)
    if (got := _reading(model.tokenizer, day, given)) != asked:
        raise MechsafetyError(
            f"model {spec!r} renders {got[0][:80]!r} where its template gives {asked[0][:80]!r}: TransformerLens has "
            "put another tokenizer in its place; report this with the model's name"
        )
    return model


def _to_boot_with(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy for TransformerLens, which changes the tokenizer that it is given.

    It also loads one that has a BOS anew, from whatever revision, unless it is declared to add that already.
    """
    copied = copy.deepcopy(tokenizer)
    copied.init_kwargs["add_bos_token"] = True
    return copied


def _give_tokenizer(model: Any, tokenizer: Any, day: str) -> None:
    """Make the checkpoint's tokenizer the model's, and pass TransformerLens what that puts around text."""
    model.tokenizer = None  # what takes another one's place is changed
    model.tokenizer = tokenizer
    model.__dict__["_mechsafety_tokenizer"], model.__dict__["_mechsafety_day"] = tokenizer, day
    start, end = rendering.around_bare_text(tokenizer)
    model.cfg.tokenizer_prepends_bos = start[:1] == [tokenizer.bos_token_id]
    model.cfg.tokenizer_appends_eos = end[-1:] == [tokenizer.eos_token_id]


def _reading(tokenizer: Any, day: str, given: TemplateInput) -> tuple[str, list[int], list[int]]:
    """A rendered turn, its tokens, and those of bare text."""
    text = rendering.rendered(tokenizer, rendering.HELLO, day=day, given=given)
    return text, rendering.chat_tokens(tokenizer, text), rendering.bare_tokens(tokenizer, "Hello")
