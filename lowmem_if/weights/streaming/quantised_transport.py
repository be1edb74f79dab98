"""Numbers for computing from whole numbers, which are kept in memory or come by another transport."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lowmem_if.weights.modules.quantised_weights import QuantisedWeights
from lowmem_if.weights.streaming.arena import aligned
from lowmem_if.weights.streaming.offload_groups import OffloadGroup, size_of
from lowmem_if.weights.streaming.transports import Transport


class QuantisedTransport:
    """Weights are whole numbers until their layer computes: then the computing thread makes numbers.

    One layer's numbers are in memory at a time, in a block that is large enough for every layer.
    """

    def __init__(
        self,
        weights: QuantisedWeights,
        groups: Sequence[OffloadGroup],
        coded: dict[OffloadGroup, OffloadGroup],
        inner: Transport | None,
        device: str,
    ) -> None:
        """Make the block for `groups`.

        Args:
            coded: the groups that stream, with their whole numbers as groups of `inner`.
            inner: moves those; None: no group streams.
        """
        self._weights, self._coded, self._inner = weights, coded, inner
        size = max((sum(aligned(size_of(slot)) for slot in g.slots) for g in groups), default=0)
        self._memory = torch.empty(size, dtype=torch.uint8, device=device)
        self._user: OffloadGroup | None = None

    def reserve(self, group: OffloadGroup, *, force: bool = False) -> bool:
        if group not in self._coded or self._inner is None:
            return True
        return self._inner.reserve(self._coded[group], force=force)

    def load(self, group: OffloadGroup) -> None:
        if group in self._coded and self._inner is not None:
            self._inner.load(self._coded[group])

    def tensors(self, group: OffloadGroup) -> list[torch.Tensor]:
        codes: Sequence[torch.Tensor | None] = [None] * len(group.slots)
        if group in self._coded and self._inner is not None:
            codes = self._inner.tensors(self._coded[group])
        memory, start, made = self._block(group), 0, []
        for slot, streamed in zip(group.slots, codes, strict=True):
            weight = slot.shaped(memory[start : start + size_of(slot)].view(slot.dtype))
            self._weights.fill(slot, weight, streamed)
            start += aligned(size_of(slot))
            made.append(weight)
        return made

    def release(self, group: OffloadGroup) -> None:
        if self._user is group:
            self._user = None
        if group in self._coded and self._inner is not None:
            self._inner.release(self._coded[group])

    def close(self) -> None:
        if self._inner is not None:
            self._inner.close()
        self._memory = torch.empty(0)

    def _block(self, group: OffloadGroup) -> torch.Tensor:
        """The block; memory of its own for a layer that computes while another one does."""
        if self._user is not None:
            return torch.empty_like(self._memory)
        self._user = group
        return self._memory
