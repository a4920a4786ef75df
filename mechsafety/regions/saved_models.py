"""An edited model as a folder that plain transformers reads: the edit is in the weights, and checked there."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.arguments import as_path
from mechsafety.core.errors import MechsafetyError, first_lines
from mechsafety.core.progress import quiet
from mechsafety.edits.interventions import Edit, baked
from mechsafety.edits.sums import EditLike, as_edit
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.models.chat import own_tokenizer
from mechsafety.models.loading import generation_twin, model_name, plain_tree
from mechsafety.models.weights import auto_class
from mechsafety.regions.removal import LowRank, Pruning, Removal, removed

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_FLOAT32 = 1e-4
_HALF = 5e-2  # of the logits' spread: other kernels round otherwise


def save_model(model: ModelLike, edit: EditLike | Removal | None, folder: str | Path) -> Path:
    """Write ``model`` under ``edit`` into a new folder that plain transformers and vLLM read, tokenizer included.

    The edit is written into the weights (:func:`baked`, :func:`removed`); a head that was tied to an edited embedding
    is written as untied. Before the folder is there the model is loaded from it with plain transformers, and its logits
    on random tokens are compared with the edited model's: they differ by at most 1e-4 in float32. Distributing such a
    folder distributes the edit. Returns the folder.

    Raises :class:`MechsafetyError` for an edit without a weight form, a model that ``load_model`` did not load, a
    folder that is not empty, and where the logits differ.

    Arguments:
        folder: A new or an empty folder.

    Example:
        >>> ms.save_model(model, ms.Orthogonalise(direction), "edited-model").name
        'edited-model'
        >>> again = ms.load_model("edited-model", dtype="float32", device="cpu")
        >>> with ms.edited(model, ms.Orthogonalise(direction)):
        ...     expected = ms.logits(model, prompts.report)
        >>> torch.allclose(ms.logits(again, prompts.report), expected, atol=1e-4)
        True
    """
    model = as_model(model)
    if edit is not None and not isinstance(edit, Pruning | LowRank):
        edit = as_edit(edit, model)
    folder = as_path(folder)
    if generation_twin(model) is None:
        raise MechsafetyError(
            "save_model writes a model that load_model loaded, without hooks or changed modules on it"
        )
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise MechsafetyError(f"{str(folder)!r} is not empty: name a new folder for the model")
    scratch = folder.parent / f".writing-{uuid.uuid4().hex}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _under(model, edit):
            whole: Any = plain_tree(model)
            with _as_it_is_tied(whole), quiet():
                whole.save_pretrained(scratch)
            own_tokenizer(model).save_pretrained(scratch)
            _require_equal(whole, scratch, model_name(model))
        if folder.is_dir():
            folder.rmdir()
        scratch.replace(folder)
    except OSError as error:
        raise MechsafetyError(f"cannot write model {str(folder)!r}: {first_lines(error)}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _under(model: TransformerBridge, edit: Edit | Removal | None) -> AbstractContextManager[None]:
    if edit is None:
        return nullcontext()
    return removed(model, edit) if isinstance(edit, Pruning | LowRank) else baked(model, edit)


@contextmanager
def _as_it_is_tied(whole: Any) -> Iterator[None]:
    """The config says whether head and embedding are one table, which an edit may have parted, while this lasts."""
    head, table = whole.get_output_embeddings(), whole.get_input_embeddings()
    parted = head is not None and head.weight is not table.weight
    # In a model that reads images too either configuration may say it, or both.
    both = {id(config): config for config in (whole.config, whole.config.get_text_config())}
    configs = [config for config in both.values() if hasattr(config, "tie_word_embeddings")]
    if not (parted and any(config.tie_word_embeddings for config in configs)):
        yield
        return
    before = [config.tie_word_embeddings for config in configs]
    keys = whole.__dict__.get("all_tied_weights_keys")
    try:
        for config in configs:
            config.tie_word_embeddings = False
        if keys is not None:
            whole.all_tied_weights_keys = {}
        yield
    finally:
        for config, tied in zip(configs, before, strict=True):
            config.tie_word_embeddings = tied
        if keys is not None:
            whole.all_tied_weights_keys = keys


def _require_equal(whole: Any, folder: Path, name: str) -> None:
    dtype = next(whole.parameters()).dtype
    with quiet():
        written = auto_class(whole.config).from_pretrained(folder, dtype=dtype, local_files_only=True)
    expected, found = _probe(whole), _probe(written.to(whole.device).eval())
    apart = float((expected - found).abs().max())
    allowed = _FLOAT32 if dtype in (torch.float32, torch.float64) else _HALF * float(expected.std())
    if not apart <= allowed:
        raise MechsafetyError(
            f"{name} was not written: plain transformers reads a model whose logits lie {apart:.2g} from the edited "
            f"one's (allowed {allowed:.2g})"
        )


def _probe(whole: Any) -> Float[Tensor, "row token vocabulary"]:
    vocabulary = int(whole.get_input_embeddings().weight.shape[0])
    ids = torch.randint(0, vocabulary, (2, 12), generator=torch.Generator().manual_seed(0)).to(whole.device)
    with torch.inference_mode():
        return whole(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.float().cpu()
