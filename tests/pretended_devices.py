"""Several devices on a machine that has none: CPU tensors that carry a pretended device.

Pretended devices are ``cpu:1`` and ``cpu:2``; the host is ``cpu``. A storage carries the device of its tensors, so
that views are where their base is. While :class:`PretendedDevices` is on, ``tensor.device`` shows it, ``.to(device)``
copies, an operation on tensors of two devices raises as it would on two GPUs (host scalars of no dimension and host
indices may be mixed, as torch allows), and everything for which a GPU would have to be waited for is counted with
the line that asked for it. Hooks that accelerate installs to carry activations between blocks run as they are.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

HOST = torch.device("cpu")
FIRST, SECOND = torch.device("cpu", 1), torch.device("cpu", 2)

_WAITS = {
    *("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select", "aten::bincount"),
    *("aten::_unique2", "aten::unique_dim", "aten::repeat_interleave.Tensor"),
}
"""Operations whose result, or the size of it, the host must know."""
_INDEXING = {"aten::index.Tensor", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


_READ = {
    *(Tensor.tolist, Tensor.item, Tensor.numpy, Tensor.__array__),
    *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.__complex__),
}
"""What reads a tensor's entries; of a single entry torch does so past its dispatcher in inference mode."""
_DEVICE: Any = Tensor.device.__get__  # made anew at every look: equal, not the same


class MixedDevicesError(RuntimeError):
    """An operation on tensors of two pretended devices."""


class PretendedDevices:
    """``waits``: how often the host waited for a device while this was on, by operation and line."""

    def __init__(self) -> None:
        self.tags: dict[int, tuple[StorageWeakRef, torch.device]] = {}
        self.waits: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def on(self) -> Iterator[None]:
        with _Functions(self), _Operations(self):
            yield

    @contextmanager
    def counting(self) -> Iterator[Counter[tuple[str, str]]]:
        """The waits within the block alone."""
        before, found = Counter(self.waits), Counter[tuple[str, str]]()
        yield found
        found.update(self.waits - before)

    def of(self, tensor: Tensor) -> torch.device:
        storage = _storage(tensor)
        if storage is None:
            return tensor.device
        found = self.tags.get(storage._cdata)
        return HOST if found is None or found[0].expired() else found[1]

    def put(self, tensor: Tensor, device: torch.device) -> None:
        storage = _storage(tensor)
        if storage is None:
            return
        if device == HOST:
            self.tags.pop(storage._cdata, None)
        else:
            # The weak reference keeps the address from being given to another storage.
            self.tags[storage._cdata] = (StorageWeakRef(storage), device)
        if len(self.tags) > 20_000:
            self.tags = {key: value for key, value in self.tags.items() if not value[0].expired()}

    def wait(self, what: str) -> None:
        self.waits[what, _asking_line()] += 1


def _storage(tensor: Tensor) -> Any:
    with torch._C.DisableTorchFunction():
        if tensor.device.type == "meta":
            return None
        while is_functorch_wrapped_tensor(tensor):
            tensor = get_unwrapped(tensor)
        try:
            return tensor.untyped_storage()
        except NotImplementedError:
            return None


def _asking_line() -> str:
    """The innermost line of this package, or of what it called."""
    frame, other = sys._getframe(2), ""
    while frame is not None:
        path = frame.f_code.co_filename
        if "/mechsafety/" in path and "/tests/" not in path:
            inner = f" ({other})" if other else ""
            return f"{path.rpartition('/mechsafety/')[2]}:{frame.f_code.co_name}{inner}"
        if not other and ("/transformers/" in path or "/transformer_lens/" in path or "/accelerate/" in path):
            other = f"{path.rpartition('/site-packages/')[2]}:{frame.f_code.co_name}"
        frame = frame.f_back
    return other or "elsewhere"


class _Operations(TorchDispatchMode):
    """Every operation, backward passes included: what it mixes, where its result is, what it waits for."""

    def __init__(self, devices: PretendedDevices) -> None:
        super().__init__()
        self.devices = devices

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name + (f".{func._overloadname}" if func._overloadname != "default" else "")
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        places = [self.devices.of(t) for t in given]
        here = {p for p in places if p != HOST}
        if name.startswith("aten::copy_"):
            self._copied(places)
            return func(*args, **(kwargs or {}))
        whole = {p for t, p in zip(given, places, strict=True) if t.ndim or p != HOST}
        if name == "aten::scatter_.value" and places[0] == HOST:
            # one_hot makes its zeros where its indices are, in code that asks nobody.
            whole = {p for p in whole if p != HOST}
            self.devices.put(args[0], next(iter(whole), HOST))
        if name in _INDEXING:
            whole = {self.devices.of(args[0])} | {p for p in whole if p != HOST}
        if len(whole) > 1:
            shapes = ", ".join(f"{list(t.shape)} on {p}" for t, p in zip(given, places, strict=True))
            raise MixedDevicesError(f"{name} of tensors on several devices: {shapes}")
        if here and (name in _WAITS or (name in _INDEXING and self._by_mask(args[1]))):
            self.devices.wait(name)
        out = func(*args, **(kwargs or {}))
        if here:
            for made in tree_leaves(out):
                if isinstance(made, Tensor) and self.devices.of(made) == HOST:
                    self.devices.put(made, next(iter(here)))
        return out

    def _copied(self, places: list[torch.device]) -> None:
        if len(places) == 2 and places[0] == HOST != places[1]:
            self.devices.wait("copy to the host")

    @staticmethod
    def _by_mask(indices: Any) -> bool:
        return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)


class _Move(torch.autograd.Function):
    """A copy on another device, whose gradient comes back to the first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, devices: PretendedDevices, device: torch.device) -> Tensor:
        ctx.devices, ctx.device = devices, devices.of(x)
        return _copy(x, devices, device)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return _copy(grad_outputs[0], ctx.devices, ctx.device), None, None


def _copy(x: Tensor, devices: PretendedDevices, device: torch.device) -> Tensor:
    made = x.detach().clone()
    devices.put(made, device)
    return made


class _Functions(TorchFunctionMode):
    """What names a device: ``.device``, ``.to``, ``.cpu``, and whatever makes a tensor somewhere."""

    def __init__(self, devices: PretendedDevices) -> None:
        super().__init__()
        self.devices = devices

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == _DEVICE:
            return self.devices.of(args[0])
        if func in _READ:
            return self._on_host(func, args, kwargs)
        if func is Tensor.cpu:
            return self._moved(args[0], HOST)
        if func is Tensor.to:
            return self._to(args, kwargs)
        if func is Tensor.__deepcopy__:
            made = func(*args, **kwargs)
            self.devices.put(made, self.devices.of(args[0]))
            return made
        wanted = kwargs.get("device")
        if wanted is not None and torch.device(wanted).type == "cpu":
            kwargs["device"] = HOST
            made = func(*args, **kwargs)
            tree_map(lambda t: self._place(t, torch.device(wanted)), made)
            return made
        return func(*args, **kwargs)

    def _place(self, made: Any, device: torch.device) -> None:
        if isinstance(made, Tensor):
            self.devices.put(made, device)

    def _on_host(self, func: Any, args: Any, kwargs: Any) -> Any:
        if self.devices.of(args[0]) == HOST:
            return func(*args, **kwargs)
        if func in (Tensor.numpy, Tensor.__array__):
            raise TypeError(f"{func.__name__} of a tensor on {self.devices.of(args[0])}")
        self.devices.wait(func.__name__)
        with torch._C._DisableTorchDispatch():
            return func(*args, **kwargs)

    def _to(self, args: Any, kwargs: dict[str, Any]) -> Tensor:
        tensor, *rest = args
        device = kwargs.pop("device", None)
        others: list[Any] = []
        for value in rest:
            if isinstance(value, Tensor):
                device, others = self.devices.of(value), [*others, value.dtype]
            elif isinstance(value, torch.device | str) or (type(value) is int):
                device = value
            elif isinstance(value, torch.dtype):
                others.append(value)
        if (other := kwargs.pop("other", None)) is not None:
            device, others = self.devices.of(other), [other.dtype]
        out = tensor.to(*others, **kwargs) if others or kwargs else tensor
        return out if device is None else self._moved(out, torch.device(device))

    def _moved(self, tensor: Tensor, device: torch.device) -> Tensor:
        here = self.devices.of(tensor)
        if here == device:
            return tensor
        if device == HOST:
            self.devices.wait("copy to the host")
        return _Move.apply(tensor, self.devices, device)
