"""Whether a file holds a model's weights: every tensor filled from it, none left over, a row for every token."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mechsafety.core.errors import MechsafetyError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CONSTANTS = re.compile(r"(^|\.)((attn|attention)\.(bias|masked_bias|causal_mask)|rotary_emb\.inv_freq)$")
"""Causal masks and rotary frequencies, which older releases of transformers wrote into files."""
_SHOWN = 3


def load_filled(kind: Any, folder: str, *, source: str, config: Any = None, **options: Any) -> Any:
    """The model that ``kind.from_pretrained(folder, **options)`` gives, if the file fills all of it and holds no more.

    transformers knows ties and what an architecture may leave out. ``config`` is the file's own, where a text model is
    loaded from a file that holds other modalities too; their tensors are no fault. ``source`` is for the message of
    the :class:`MechsafetyError` that is raised otherwise.
    """
    model, info = kind.from_pretrained(
        folder, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    _require_filled(model, info, source=source, config=config)
    return model


def _require_filled(
    model: PreTrainedModel, info: Mapping[str, Iterable[Any]], *, source: str, config: Any
) -> None:
    missing = sorted(info["missing_keys"])
    shapes = [
        f"{name} {list(stored)} for {list(own)}" for name, stored, own in sorted(info["mismatched_keys"])
    ]
    strange = sorted(set(info["unexpected_keys"]) - _innocent(model, info["unexpected_keys"], config))
    problems = [
        f"{len(names)} {what} ({', '.join(map(str, names[:_SHOWN]))}{', …' if len(names) > _SHOWN else ''})"
        for names, what in (
            (missing, "not in it"),
            (shapes, "of another shape"),
            (strange, "without a place in the model"),
        )
        if names
    ]
    if not problems:
        return
    kind = type(model).__name__
    saved = [name for name in getattr(config or model.config, "architectures", None) or [] if name != kind]
    raise MechsafetyError(
        f"{source!r} {f'was saved as {saved[0]} and ' if saved else ''}does not hold the weights of a {kind}; "
        f"tensors: {'; '.join(problems)}. Only a whole causal language model can be loaded"
        + (
            ", and no judge reads a classification head"
            if any("Classification" in name for name in saved)
            else ""
        )
    )


def _innocent(model: PreTrainedModel, names: Iterable[str], config: Any) -> set[str]:
    """Those of ``names`` that the model works out itself, and those of modalities that it does not have."""
    own = {name for name, _ in model.named_buffers()}
    found = {name for name in names if name in own or _CONSTANTS.search(name)}
    if len(getattr(config, "sub_configs", {})) > 1 and type(model.config) is not type(config):
        text = {*(name for name, _ in model.named_children()), model.base_model_prefix}
        found |= {name for name in names if name.partition(".")[0] not in text}
    return found


def require_embedding_rows(model: PreTrainedModel, tokenizer: Any, *, source: str) -> None:
    """Raise :class:`MechsafetyError` where a token that text can hold has no row in the embedding.

    Placeholders of other modalities (special tokens that the chat template never writes) may lack one.
    """
    try:
        table: Any = model.get_input_embeddings()
    except NotImplementedError:
        raise MechsafetyError(
            f"{source!r} is a {type(model).__name__}, which has no one table of token embeddings: it is no "
            "causal language model"
        ) from None
    rows = table.weight.shape[0]
    if len(tokenizer) <= rows:
        return
    added, vocabulary = tokenizer.added_tokens_decoder, tokenizer.get_vocab()
    used = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    template = str(tokenizer.chat_template)
    without = [
        token
        for token, i in sorted(vocabulary.items(), key=lambda item: item[1])
        if i >= rows and (i not in added or not added[i].special or token in used or token in template)
    ]
    if without:
        raise MechsafetyError(
            f"{source!r}: {len(without)} tokens of its tokenizer have no row in the embedding, which has {rows} (e.g. "
            f"{without[0]!r}): tokenizer and weights belong to different models, or the embedding was not resized"
        )
