"""How a model is called in other packages."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mechsafety.edits.interventions import Edit, digest
from mechsafety.models.loading import load_record, model_name

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

HASH_LENGTH = 12


def edit_hash(edit: Edit) -> str:
    """The first 12 hexadecimal digits of the edit's SHA-256: what a model's name carries."""
    return digest(edit)[:HASH_LENGTH]


def variant(edit: Edit | None, chat: str = "") -> str:
    """``@`` and 12 hexadecimal digits for what is done to a model: its edit, and chat settings (as text) that are not
    the default ones; empty where nothing is."""
    if not chat:
        return f"@{edit_hash(edit)}" if edit is not None else ""
    both = f"{digest(edit) if edit is not None else ''} {chat}"
    return f"@{hashlib.sha256(both.encode()).hexdigest()[:HASH_LENGTH]}"


def public_name(spec: str, fingerprint: str) -> str:
    """``spec`` without the folders in which a local model or adapter lies.

    Where something was left out, eight digits of the weights' ``fingerprint`` keep models of one name apart.
    """
    base, plus, adapter = spec.partition("+")
    short = "+".join(_last_part(part) for part in ([base, adapter] if plus else [base]))
    return short if short == spec else f"{short}-{fingerprint[:8]}"


def name_of(model: TransformerBridge) -> str:
    """What a loaded model is called: its spec's :func:`public_name`, or its kind with the weights' fingerprint."""
    record = load_record(model)
    if record is not None:
        return public_name(record.spec, record.fingerprint)
    return _last_part(model_name(model))


def _last_part(spec: str) -> str:
    # A hub id has one slash and does not begin like a path.
    local = spec.startswith((".", "/", "~")) or len(re.findall(r"[/\\]", spec)) > 1
    return Path(spec).name if local or "\\" in spec or Path(spec).exists() else spec
