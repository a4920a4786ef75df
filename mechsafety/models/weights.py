"""What lies in a model's folder: its configuration, its weights on their devices, its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mechsafety.core.errors import MechsafetyError, first_lines, way
from mechsafety.core.progress import quiet
from mechsafety.models.filled_weights import load_filled
from mechsafety.models.hardware import dtype_name, free_bytes
from mechsafety.models.placing import Placing
from mechsafety.models.quantised import bytes_per_weight, quantisation
from mechsafety.models.specs import ModelSpec, load_error
from mechsafety.models.templates import UNREAD_TEMPLATE

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_config(spec: str, parsed: ModelSpec, folder: str) -> Any:
    from transformers import AutoConfig

    try:
        with quiet():
            return AutoConfig.from_pretrained(folder, revision=parsed.revision)
    except Exception as error:
        raise load_error(spec, parsed, error) from error


def load_weights(
    spec: str,
    parsed: ModelSpec,
    folder: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    placing: Placing | None = None,
    trust_remote_code: bool,
) -> PreTrainedModel:
    """The causal language model in ``folder`` on ``device`` or divided by ``placing``, if the memory suffices.

    ``spec`` is for messages.
    """
    from transformers import AutoConfig

    try:
        with quiet():
            config = AutoConfig.from_pretrained(
                folder, revision=parsed.revision, trust_remote_code=trust_remote_code
            )
            _require_decoder(spec, config)
            shape, need = shape_of(config, dtype, trust_remote_code=trust_remote_code)
            packed = quantisation(config) is not None  # such weights do not move once they are loaded
            if placing is None:
                _require_memory(spec, need, dtype, device)
                where = {"device_map": {"": device}} if packed else {}
            else:
                where = {"device_map": placing.planned(spec, shape, dtype)}
            model = load_filled(
                auto_class(config),
                folder,
                source=spec,
                config=config,
                revision=parsed.revision,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                **where,
            )
    except MechsafetyError:
        raise
    except Exception as error:
        raise load_error(spec, parsed, error) from error
    return model.eval() if where else model.to(device).eval()


def _require_decoder(spec: str, config: Any) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise MechsafetyError(
            f"{spec!r} is an encoder with a decoder ({config.model_type}): only a causal language model can be loaded"
        )


def auto_class(config: Any) -> Any:
    """Which of transformers' classes makes a language model of ``config``: of text, or where it has none of text alone
    (Mistral 3), of images and text."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    of_text, of_both = AutoModelForCausalLM._model_mapping, AutoModelForImageTextToText._model_mapping
    both = type(config) not in of_text and type(config) in of_both
    return AutoModelForImageTextToText if both else AutoModelForCausalLM


def shape_of(
    config: Any, dtype: torch.dtype, *, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, float]:
    """The model of a configuration without its weights, and the bytes that they take."""
    with torch.device("meta"):
        shape = auto_class(config).from_config(config, trust_remote_code=trust_remote_code)
    return shape, sum(p.numel() for p in shape.parameters()) * bytes_per_weight(config, dtype)


def _require_memory(spec: str, need: float, dtype: torch.dtype, device: torch.device) -> None:
    free = free_bytes(device)
    if need > free:
        raise MechsafetyError(
            f"model {spec!r} needs {need / 1e9:.1f} GB in {dtype_name(dtype)}, but {device} has "
            f"{free / 1e9:.1f} GB free: choose a smaller model, {way('--dtype bfloat16')}, or another "
            f"{way('--device')}"
        )


def load_tokenizer(
    spec: str, parsed: ModelSpec, folder: str, *, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    """Its tokenizer, padding on the left."""
    from transformers import AutoTokenizer

    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, revision=parsed.revision, trust_remote_code=trust_remote_code
            )
    except Exception as error:
        raise load_error(spec, parsed, error) from error
    if tokenizer.chat_template is None:
        try:
            tokenizer.chat_template = _template_beside(folder, parsed.revision)
        except OSError as error:  # no matter where the user gives another
            tokenizer.__dict__[UNREAD_TEMPLATE] = first_lines(error)
    if isinstance(tokenizer.chat_template, dict):  # some have templates for tools or documents beside it
        tokenizer.chat_template = tokenizer.chat_template.get("default", tokenizer.chat_template)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def _template_beside(folder: str, revision: str | None) -> Any:
    """The chat template of a model that reads images too, where it stands beside the tokenizer: chat_template.json.

    Raises OSError where it cannot be known whether there is one.
    """
    from transformers.utils import cached_file

    found = cached_file(
        folder,
        "chat_template.json",
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
    )
    if found is None:
        return None
    try:
        return json.loads(Path(found).read_text(encoding="utf-8"))["chat_template"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MechsafetyError(f"{found} holds no chat template: {first_lines(error)}") from None
