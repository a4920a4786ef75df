"""How the blocks of a model are laid out, read off one pass: which of their modules write to the stream, and where.

In a block modules follow one another in chains: a norm, attention, perhaps a norm of what that gives out. A chain
begins at a module that reads the stream and ends at one whose output is added to it. Which follows which is seen from
what they read and give out; whether a chain is attention or an MLP, from whether its main module mixes tokens when it
is called again. A layout counts only where the block's output is a weighted sum of its input and of what its modules
give out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechsafety.core.errors import first_lines
from mechsafety.models.faithful import made_up_tokens
from mechsafety.models.handles import attached

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOKENS = 16
_HALF = _TOKENS // 2


class OtherLayoutError(Exception):
    """Why the blocks of a model are not hooked, as the end of a sentence."""


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A module of a block that reads the stream and writes to it: ``writes`` is the module whose output is added."""

    name: str
    site: str
    writes: str


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the parts of a model lie, as module paths; ``parts`` are names within a block, and ``mid`` the one that
    reads the stream between the two branches (empty where none does)."""

    embedding: str
    blocks: str
    norm: str
    head: str
    branches: tuple[Branch, ...]
    parts: tuple[str, ...]
    mid: str


@dataclass(eq=False)
class _Call:
    """What a module read and gave out of the stream in the pass, and where these stood in memory.

    ``args`` and ``kwargs`` are all that it was called with, of which ``x`` is the first of the stream.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    x: Tensor
    y: Tensor
    read_at: int
    given_at: int


_Calls = dict[str, _Call]


def read_layout(hf: PreTrainedModel) -> Layout:
    """The layout of a model's blocks. Raises :class:`OtherLayoutError` where they are none that can be hooked."""
    paths = {id(module): path for path, module in hf.named_modules()}
    embedding: Any = hf.get_input_embeddings()
    head: Any = hf.get_output_embeddings()
    if id(embedding) not in paths or id(head) not in paths or hf.base_model is hf:
        raise OtherLayoutError("it has no embedding, unembedding or base model of the usual names")
    d_model = int(embedding.weight.shape[-1])
    calls = _calls(hf, int(embedding.weight.shape[0]), d_model)
    path, blocks = _blocks_of(hf, calls)
    branches: dict[str, Branch] = {}
    parts: dict[str, None] = {}
    mids: set[str] = set()
    for number, block in enumerate(blocks):
        own = {
            name: calls[f"{path}.{number}.{name}"]
            for name, _ in block.named_children()
            if f"{path}.{number}.{name}" in calls
        }
        found, mid = _read_block(number, calls[f"{path}.{number}"], own)
        for branch in found:
            if branches.setdefault(branch.name, branch) != branch:
                raise OtherLayoutError(f"{branch.name} is not in every block what it is in the first")
        parts |= dict.fromkeys(
            name for name, call in own.items() if any(True for _ in call.module.parameters())
        )
        mids.add(mid)
    return Layout(
        embedding=paths[id(embedding)],
        blocks=path,
        norm=_norm_behind(path, calls, calls[f"{path}.{len(blocks) - 1}"].y),
        head=paths[id(head)],
        branches=tuple(branches.values()),
        parts=tuple(parts),
        mid=mids.pop() if len(mids) == 1 else "",
    )


def _calls(hf: PreTrainedModel, vocabulary: int, d_model: int) -> _Calls:
    """Every module that a pass calls once on the stream, by its path, in the order of their outputs."""
    found: _Calls = {}
    twice: set[str] = set()

    def watch(path: str) -> Any:
        read: list[tuple[tuple[Any, ...], dict[str, Any], Tensor, int]] = []

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # Blocks may write into what their modules have read.
            kept_args, kept = _with_stream(args, kwargs, d_model, lambda x: x.detach().clone())
            pairs = zip((*args, *kwargs.values()), (*kept_args, *kept.values()), strict=True)
            of_stream = [(x, x_kept) for x, x_kept in pairs if _is_stream(x, d_model)]
            read[:] = [(kept_args, kept, x_kept, x.data_ptr()) for x, x_kept in of_stream[:1]]

        def after(module: nn.Module, _args: Any, output: Any) -> None:
            out: Any = output[0] if isinstance(output, tuple | list) and output else output
            if path in found:
                twice.add(path)
            if read and _is_stream(out, d_model):
                args, kwargs, x, place = read[0]
                found[path] = _Call(
                    module=module,
                    args=args,
                    kwargs=kwargs,
                    x=x,
                    y=out.detach().clone(),
                    read_at=place,
                    given_at=out.data_ptr(),
                )

        return before, after

    handles: list[Any] = []
    for path, module in hf.named_modules():
        if path:
            before, after = watch(path)
            handles += [
                module.register_forward_pre_hook(before, with_kwargs=True),
                module.register_forward_hook(after),
            ]
    embedding: Any = hf.get_input_embeddings()
    ids = made_up_tokens(vocabulary, _TOKENS, embedding.weight.device)
    with attached(handles), torch.inference_mode():
        hf(input_ids=ids, use_cache=False)
    return {path: call for path, call in found.items() if path not in twice}


def _is_stream(x: Any, d_model: int) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.shape == (1, _TOKENS, d_model)


def _with_stream(
    args: tuple[Any, ...], kwargs: dict[str, Any], d_model: int, change: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a module is called with, those of the stream changed."""

    def changed(x: Any) -> Any:
        return change(x) if _is_stream(x, d_model) else x

    return tuple(changed(x) for x in args), {name: changed(x) for name, x in kwargs.items()}


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other.to(one.device))


def _blocks_of(hf: PreTrainedModel, calls: _Calls) -> tuple[str, nn.ModuleList]:
    """The list of modules through which the stream goes, one after another."""
    for path, module in hf.named_modules():
        if not isinstance(module, nn.ModuleList) or not len(module) or f"{path}.0" not in calls:
            continue
        through = [call for number in range(len(module)) if (call := calls.get(f"{path}.{number}"))]
        if len(through) == len(module) and all(_same(a.y, b.x) for a, b in itertools.pairwise(through)):
            return path, module
    raise OtherLayoutError("it has no list of blocks of which each reads what the one before it gives out")


def _norm_behind(blocks: str, calls: _Calls, end: Tensor) -> str:
    parent = blocks.rpartition(".")[0]
    for path, call in calls.items():
        if path.rpartition(".")[0] == parent and _same(call.x, end):
            return path
    raise OtherLayoutError("no norm reads what its last block gives out")


def _read_block(number: int, block: _Call, calls: _Calls) -> tuple[list[Branch], str]:
    """The branches of one block, and the module that reads the stream between them."""
    chains = _chains(number, calls)
    shared = {name for chain in chains for name in chain if sum(name in other for other in chains) > 1}
    found: list[Branch] = []
    mid = ""
    for chain in chains:
        alone = [name for name in chain if name not in shared]
        if not alone:
            raise OtherLayoutError(f"what reads what in block {number} is not to be told apart")
        main = max(alone, key=lambda name: sum(p.numel() for p in calls[name].module.parameters()))
        if sum(p.ndim > 1 for p in calls[main].module.parameters()) < 2:
            raise OtherLayoutError(
                f"{main} of block {number} writes to the stream and is no attention and no MLP"
            )
        site = "attn_out" if _mixes_tokens(f"{main} of block {number}", calls[main]) else "mlp_out"
        if site == "mlp_out" and not _same(calls[chain[0]].x, block.x):
            mid = chain[0]
        found.append(Branch(name=main, site=site, writes=chain[-1]))
    _require_sum(number, block, [call.y for call in calls.values() if not _same(call.x, call.y)])
    return found, mid


def _mixes_tokens(name: str, call: _Call) -> bool:
    """Whether what a module gives out at a token moves with the others: it is called again with other tokens.

    Where nothing moves, it must give out the same for tokens in another order: attention to the keys of another
    module is then told from an MLP. Raises :class:`OtherLayoutError` where it is neither, or gives out anew what it
    did not before.
    """

    def moved(change: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor] = lambda y: y) -> float:
        """How far the second half of the tokens is from what it was: of the token with most, over its length."""
        with torch.inference_mode():
            args, kwargs = _with_stream(call.args, call.kwargs, call.x.shape[-1], lambda x: change(x.clone()))
            output: Any = call.module(*args, **kwargs)
        y = back(output[0] if isinstance(output, tuple | list) else output).double()
        was = call.y.to(y)
        return float(((y - was).norm(dim=-1) / was.norm(dim=-1))[:, _HALF:].max())

    rounding, clear = (0.03, 0.1) if call.y.dtype.itemsize < 4 else (1e-4, 1e-3)
    try:
        again = moved(lambda x: x)
        others = moved(lambda x: torch.cat([x[:, _HALF:], x[:, _HALF:]], dim=1))
        order = moved(lambda x: x.flip(1), lambda y: y.flip(1))
    except Exception as error:  # whatever the code of an architecture raises
        raise OtherLayoutError(
            f"{name} cannot be called again, to see whether it mixes tokens: {first_lines(error)}"
        ) from None
    if again < rounding and others > clear:
        return True
    if all(apart < rounding for apart in (again, others, order)):
        return False
    raise OtherLayoutError(f"whether {name} mixes tokens is not to be told")


def _chains(number: int, calls: _Calls) -> list[list[str]]:
    """The chains of modules that read one another, each from the stream to what is added to it."""
    # A module that changes nothing (dropout) stands for none.
    acting = {name: call for name, call in calls.items() if not _same(call.x, call.y)}
    follows: dict[str, list[str]] = {name: [] for name in acting}
    for name, call in acting.items():
        for other in _givers(call, acting):
            follows[other].append(name)
    read = {other for later in follows.values() for other in later}
    chains = [[name] for name in acting if name not in read]
    done: list[list[str]] = []
    while chains:
        chain = chains.pop(0)
        if len(chain) > len(acting):
            raise OtherLayoutError(f"the modules of block {number} follow one another in a ring")
        later = follows[chain[-1]]
        chains += [[*chain, name] for name in later]
        if not later:
            done.append(chain)
    return done


def _givers(call: _Call, calls: _Calls) -> list[str]:
    """The modules that gave out what a module reads; of several that gave out the same numbers, the one whose tensor it
    read."""
    same = [name for name, other in calls.items() if other is not call and _same(other.y, call.x)]
    own = [name for name in same if calls[name].given_at == call.read_at]
    return own if len(same) > 1 and own else same


def _require_sum(number: int, block: _Call, given: list[Float[Tensor, "1 token d_model"]]) -> None:
    """Norms may be among what is summed: MiniMax hands on what they give out."""
    terms = torch.stack([x.flatten().double().cpu() for x in (block.x, *given)], dim=1)
    out = block.y.flatten().double().cpu()[:, None]
    apart = float((terms @ torch.linalg.lstsq(terms, out).solution - out).norm() / out.norm())
    if not apart < (0.03 if block.y.dtype.itemsize < 4 else 1e-3):
        raise OtherLayoutError(
            f"what block {number} gives out is no sum of what it reads and of what its modules give out"
        )
