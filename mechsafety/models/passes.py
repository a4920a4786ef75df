"""Which columns a forward pass covers, and which of them an edit's positions name."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from mechsafety.core.errors import MechsafetyError
from mechsafety.models.chat import last_columns
from mechsafety.models.forward import prompt_columns
from mechsafety.models.one_thread import require_thread, this_thread
from mechsafety.models.placing import Copies

_ANSWERING = ("generate", "generate_stream", "hf_generate")
"""Methods, TransformerLens's and Hugging Face's, that answer one prompt in many passes."""


class Pass:
    """Which columns the running forward pass covers, and which of them an edit's positions name.

    A cached step sees one column; how many came before is read from the cache, so that ``prompt`` and
    ``generated`` do not depend on how the columns were cut into passes. Within a model's own ``generate`` the prompt
    is what its first pass covers; elsewhere it is what an uncached pass covers, and a further uncached pass that goes
    on from the one before is an error, because nothing distinguishes an answer in it from a longer prompt.

    ``padding`` is the tokenizer's token for it. Where no mask marks which columns are real, rows that end in more of
    these than the row with the fewest are taken as padded on the right, as TransformerLens pads by default.
    """

    def __init__(self, positions: str, prompt_length: int | None, *, padding: int | None = None) -> None:
        self.positions = positions
        self.fixed_length = prompt_length
        self.length = prompt_length or 0
        self.padding = padding
        self.chosen: Copies | None = None
        self.size: int | Tensor = 0
        self.shape = (0, 0)
        self.kept: int | None = None
        self.begun_in: nn.Module | None = None
        self.columns = (0, 0)
        self.answering = 0
        self.begun = False
        self.uncached: Tensor | None = None
        self.embedded: Tensor | None = None
        self.seen: set[nn.Module] = set()
        self.thread = this_thread()

    @contextmanager
    def marking_answers(self, owner: Any) -> Iterator[None]:
        """While the block runs, the ``generate`` of ``owner`` marks when it begins and ends."""
        names = [name for name in _ANSWERING if hasattr(type(owner), name)]
        before = {name: owner.__dict__[name] for name in names if name in owner.__dict__}
        for name in names:
            owner.__dict__[name] = self._marked(getattr(owner, name))
        try:
            yield
        finally:
            for name in names:
                del owner.__dict__[name]
            owner.__dict__.update(before)

    def _marked(self, method: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.isgeneratorfunction(inspect.unwrap(method)):

            @functools.wraps(method)
            def stream(*args: Any, **kwargs: Any) -> Iterator[Any]:
                with self._answer():
                    yield from method(*args, **kwargs)

            return stream

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._answer():
                return method(*args, **kwargs)

        return call

    @contextmanager
    def _answer(self) -> Iterator[None]:
        # One generate may call another's: the outermost is the answer.
        self.begun = self.begun and self.answering > 0
        self.answering += 1
        try:
            yield
        finally:
            self.answering -= 1
            self.uncached = None

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a Hugging Face module runs, a model or the base in it: ``args`` and ``kwargs`` are its forward's."""
        require_thread(self.thread)
        within = module is not self.begun_in and module is getattr(self.begun_in, "base_model", None)
        self.begun_in = module
        inputs = kwargs.get("input_ids")
        if inputs is None:
            inputs = args[0] if args else kwargs["inputs_embeds"]
        before = 0
        if self.positions != "all":
            cache = kwargs.get("past_key_values", kwargs.get("cache_params"))
            before = self._columns_before(cache, inputs.shape[1], within=within)
        kept = kwargs.get("logits_to_keep")
        self.kept = kept if isinstance(kept, int) and 0 < kept < inputs.shape[1] else None
        mask = kwargs.get("attention_mask")
        self._cover(inputs, before, mask if mask is not None and mask.ndim == 2 else None)

    def _columns_before(self, cache: Any, width: int, *, within: bool) -> int:
        """How many columns ``cache`` stands for; where it is a state without a length, those that went into it here.

        A pass of ``width`` columns is counted at the model, and not again at the base ``within`` it.
        """
        if cache is not None:
            with contextlib.suppress(AttributeError, ValueError):
                return int(cache.get_seq_length())
        if not within:
            before = self.columns[1] if _has_state(cache) else 0
            self.columns = (before, before + width)
        return self.columns[0]

    def last(self, width: int) -> tuple[Copies | None, int | Tensor]:
        """Which of the last ``width`` columns the positions name (None: all of them), and how many positions these are.

        Gemma 4 runs the blocks that have no keys of their own for those columns alone whose logits are asked for.
        Raises :class:`MechsafetyError` for any other share of the columns.
        """
        rows, whole = self.shape
        if width == whole:
            return self.chosen, self.size
        if width != self.kept:
            raise MechsafetyError(
                f"an edit acts on all {whole} columns of a pass, but {width} of them reach one of its places"
            )
        if self.chosen is None:
            return None, rows * width
        chosen = self.chosen.tensor[:, -width:]
        return Copies(chosen), chosen.sum()

    def embed(self, _embedding: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a HookedTransformer embeds the tokens of the passes that its blocks then run."""
        require_thread(self.thread)
        self.embedded = args[0] if args else next(iter(kwargs.values()))
        self.seen = set()

    def begin_block(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a block of a HookedTransformer runs.

        The model itself may be called with strings, or begin at a later block; what reaches a block is always
        the stream, the mask of every column so far, and its own keys and values.
        """
        require_thread(self.thread)
        entry = kwargs.get("past_kv_cache_entry")
        before = 0 if entry is None else int(entry.past_keys.shape[1])
        inputs, mask = args[0], kwargs.get("attention_mask")
        if block in self.seen:  # the pass began at a later block, with a stream of unknown tokens
            self.embedded = None
        self.seen.add(block)
        if self.embedded is not None and self.embedded.shape == inputs.shape[:2]:
            inputs = self.embedded
        if self.positions == "last_prompt" and mask is None and inputs.is_floating_point():
            self._require_one_row(inputs)
        self._cover(inputs, before, mask)

    def _require_one_row(self, stream: Tensor) -> None:
        # The model's own generate pads on the left, where the last column is every row's.
        if stream.shape[0] > 1 and not self.answering:
            raise MechsafetyError(
                f"edited(positions='last_prompt'): {stream.shape[0]} rows begin at a later block, without tokens by "
                "which padding at their ends could be recognised: give an attention_mask, or one row at a time"
            )

    def _cover(self, inputs: Tensor, before: int, mask: Int[Tensor, "row token"] | None) -> None:
        """``inputs`` [row, token, ...] follow ``before`` cached columns; ``mask`` is that of both."""
        rows, width = self.shape = inputs.shape[0], inputs.shape[1]
        self.size = rows * width
        if self.positions == "all":
            return
        if self.fixed_length is None:
            self.length = self._prompt_length(inputs, before)
        if mask is None:
            mask = torch.ones((rows, before + width), dtype=torch.long, device=inputs.device)
            mask[:, before:] = self._padded_right(inputs)
        mask = mask.to(inputs.device)
        columns = torch.arange(before, before + width, device=inputs.device)[None]
        real = mask[:, before : before + width].bool()
        if self.positions == "generated":
            chosen = real & (columns >= self.length)
        elif self.positions == "prompt":
            chosen = real & (columns < self.length)
        else:
            # Rows padded on the right end where their mask does, which only a pass over the whole prompt knows.
            whole = before < self.length <= before + width
            last = last_columns(mask[:, : self.length]) if whole else self.length - 1
            chosen = real & (columns == (last[:, None] if isinstance(last, Tensor) else last))
        self.chosen = Copies(chosen[..., None])
        self.size = chosen.sum()

    def _prompt_length(self, inputs: Tensor, before: int) -> int:
        """How many columns are prompt, fixed by the first pass of an answer."""
        width = inputs.shape[1]
        if (known := prompt_columns()) is not None:
            return known
        if self.answering:
            length = self.length if self.begun else before + width
            self.begun = True
            return length
        if before:
            return self.length
        if self._goes_on(inputs):
            raise MechsafetyError(
                f"edited(positions={self.positions!r}): a pass without a cache repeats the one before and goes on, so "
                "that the part that is prompt is unknown: give prompt_length, or begin a new edited() "
                "for a new prompt"
            )
        self.uncached = inputs
        return width

    def _goes_on(self, inputs: Tensor) -> bool:
        """Whether an uncached pass begins with all that the one before it covered."""
        earlier = self.uncached
        if earlier is None or earlier.shape[0] != inputs.shape[0] or earlier.shape[1] >= inputs.shape[1]:
            return False
        if earlier.shape[2:] != inputs.shape[2:]:
            return False
        return torch.equal(earlier, inputs[:, : earlier.shape[1]].to(earlier.device))

    def _padded_right(self, inputs: Tensor) -> Int[Tensor, "row token"]:
        """1 for real columns: rows that were padded to one width end in unequally many padding tokens."""
        if self.padding is None or inputs.is_floating_point():
            return torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)
        other = inputs != self.padding
        trailing = other.flip(-1).cumsum(-1).eq(0).sum(-1)
        excess = trailing - trailing.min()
        columns = torch.arange(inputs.shape[1], device=inputs.device)
        return (columns[None] < inputs.shape[1] - excess[:, None]).long()


def _has_state(cache: Any) -> bool:
    """Whether ``cache``, which has no length, stands for any columns yet."""
    return cache is not None and (not hasattr(cache, "has_previous_state") or cache.has_previous_state())
