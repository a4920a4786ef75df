"""Keys and values with room for tokens to come, so that a step writes its own and copies no earlier ones.

Hugging Face's cache is made anew at every token, as long as all before it: on the CPU some 6 % of the time of a small
model's short answers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

_MOST_ROOM = 256
"""Tokens that there is room for at most beyond those that are there: answers may end long before their budget."""


def with_room(cache: Any, n_tokens: int) -> Any:
    """``cache`` with room for ``n_tokens`` in all in those of its layers that grow by appending alone."""
    for number, layer in enumerate(getattr(cache, "layers", ())):
        if type(layer) is DynamicLayer and layer.is_initialized and layer.keys is not None:
            cache.layers[number] = _RoomyLayer(layer, n_tokens)
    return cache


def without_room(cache: Any) -> Any:
    """``cache`` with Hugging Face's own layers again, which hold what is filled."""
    for number, layer in enumerate(getattr(cache, "layers", ())):
        if isinstance(layer, _RoomyLayer):
            cache.layers[number] = layer.plain()
    return cache


class _RoomyLayer(DynamicLayer):
    """A layer whose keys and values are the beginnings of longer tensors that are its own."""

    keys: Tensor
    values: Tensor

    def __init__(self, layer: DynamicLayer, n_tokens: int) -> None:
        super().__init__()
        assert layer.keys is not None
        assert layer.values is not None
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        there = layer.keys.shape[-2]
        room = min(max(n_tokens, there), there + _MOST_ROOM)
        self._own = [_longer(stored, room) for stored in (layer.keys, layer.values)]
        self._show(there)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        start, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        # Whatever takes rows of the keys leaves the tensors that are its own.
        if self.keys.shape[0] != self._own[0].shape[0] or not self._shown():
            return super().update(key_states, value_states, *args, **kwargs)
        if end > self._own[0].shape[-2]:
            self._own = [_longer(stored, end + _MOST_ROOM) for stored in (self.keys, self.values)]
        for own, new in zip(self._own, (key_states, value_states), strict=True):
            own[..., start:end, :] = new
        self._show(end)
        return self.keys, self.values

    def plain(self) -> DynamicLayer:
        layer = DynamicLayer()
        layer.dtype, layer.device, layer.is_initialized = self.dtype, self.device, True
        layer.keys, layer.values = self.keys, self.values
        return layer

    def _show(self, n_tokens: int) -> None:
        self.keys, self.values = (own[..., :n_tokens, :] for own in self._own)

    def _shown(self) -> bool:
        return self.keys.data_ptr() == self._own[0].data_ptr()


def _longer(stored: Tensor, n_tokens: int) -> Tensor:
    *rows, length, width = stored.shape
    own = torch.empty((*rows, n_tokens, width), dtype=stored.dtype, device=stored.device)
    own[..., :length, :] = stored
    return own
