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

    One layer computes at a time, and has its numbers in a block that is large enough for every layer.
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
        size = max((group.size_bytes for group in groups), default=0)
        self._memory = torch.empty(size, dtype=torch.uint8, device=device)

    def reserve(self, group: OffloadGroup, *, force: bool = False) -> bool:
        moved = self._moved(group)
        return moved is None or moved[0].reserve(moved[1], force=force)

    def load(self, group: OffloadGroup) -> None:
        if moved := self._moved(group):
            moved[0].load(moved[1])

    def tensors(self, group: OffloadGroup) -> list[torch.Tensor]:
        moved = self._moved(group)
        codes = moved[0].tensors(moved[1]) if moved else [None] * len(group.slots)
        start, made = 0, []
        for slot, streamed in zip(group.slots, codes, strict=True):
            flat = self._memory[start : start + size_of(slot)].view(slot.dtype)
            made.append(slot.shaped(flat))
            self._weights.fill(slot, made[-1], streamed)
            start += aligned(size_of(slot))
        return made

    def release(self, group: OffloadGroup) -> None:
        if moved := self._moved(group):
            moved[0].release(moved[1])

    def close(self) -> None:
        if self._inner is not None:
            self._inner.close()
        self._memory = torch.empty(0)

    def _moved(self, group: OffloadGroup) -> tuple[Transport, OffloadGroup] | None:
        """What moves a group's whole numbers, and these as its group; None if they are kept."""
        if self._inner is None or group not in self._coded:
            return None
        return self._inner, self._coded[group]
