"""What of a network is loaded and unloaded together, and which of these groups remain in memory.

A group is a layer that has weights of its own, or a whole block where a caller asks for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, zip_longest
from math import prod

import torch

from lowmem_if.cascade.quantised_layers import is_quantised, quantised_bytes
from lowmem_if.weights.modules.meta_init import Slot, owner_of
from lowmem_if.weights.streaming.arena import aligned


@dataclass(frozen=True, slots=True, eq=False)
class OffloadGroup:
    """Layers whose weights are loaded before their forward and unloaded after it.

    There are several modules only where they share a tied weight. `size_bytes` counts the weights in the
    types that they compute in, `file_bytes` as they are stored.
    """

    modules: tuple[torch.nn.Module, ...]
    slots: tuple[Slot, ...]

    @property
    def size_bytes(self) -> int:
        return sum(aligned(size_of(slot)) for slot in self.slots)

    @property
    def file_bytes(self) -> int:
        return sum(slot.stored.size_bytes for slot in self.slots)


def size_of(slot: Slot) -> int:
    """The bytes of a tensor in the type that it computes in."""
    item: int = slot.dtype.itemsize
    return prod(slot.stored.shape) * item


@dataclass(frozen=True, slots=True)
class Division:
    """What of a network streams.

    Attributes:
        moving: the groups whose weights are put in place for each forward and taken away after it.
        kept: the groups that remain in memory. Quantised ones are among `moving`, too: what remains are
            their whole numbers.
        always: the slots that belong to no group, and remain in memory.
    """

    moving: list[OffloadGroup]
    kept: set[OffloadGroup]
    always: list[Slot]

    @property
    def streamed(self) -> list[OffloadGroup]:
        """The groups that every pass reads from the files."""
        return [group for group in self.moving if group not in self.kept]


def divide(
    module: torch.nn.Module, wanted: list[Slot], resident_bytes: int, whole: tuple[type, ...] = ()
) -> Division:
    """Decide what streams if `resident_bytes` of the groups remain in memory; `whole` as for `split`."""
    groups, always = split(module, wanted, whole)
    kept = spread(groups, resident_bytes)
    return Division([group for group in groups if group not in kept], kept, always)


def divide_quantised(
    module: torch.nn.Module, wanted: list[Slot], resident_bytes: int, storage: str
) -> Division:
    """Decide it for a UNet whose matrices are whole numbers, `resident_bytes` of which remain."""
    groups, others = split(module, filter(is_matrix, wanted))
    assert not others, "a quantised matrix belongs to a layer without other layers in it"
    kept = spread(groups, resident_bytes, partial(quantised_size, storage=storage))
    return Division(groups, kept, [slot for slot in wanted if not is_matrix(slot)])


def is_matrix(slot: Slot) -> bool:
    """Whether a weight of a quantised UNet is kept as whole numbers."""
    return is_quantised(slot.names[0], slot.stored.shape)


def codes_of(group: OffloadGroup) -> OffloadGroup:
    """A quantised group's whole numbers in its 8-bit file, as a group that a transport moves."""
    codes = (
        replace(
            slot, dtype=torch.int8, channels_last=False,
            stored=replace(slot.stored, channels_last=False, scales=None),
        )
        for slot in group.slots
    )  # fmt: skip
    return OffloadGroup(group.modules, tuple(codes))


def slots_of(groups: Iterable[OffloadGroup]) -> list[Slot]:
    """All slots of groups."""
    return [slot for group in groups for slot in group.slots]


def quantised_size(group: OffloadGroup, storage: str) -> int:
    """The bytes of a group's weights as whole numbers of 8 or 4 bits with scales."""
    numbers = sum(prod(slot.stored.shape) for slot in group.slots)
    rows = sum(slot.stored.shape[0] for slot in group.slots)
    return quantised_bytes(numbers, rows, storage)


def split(
    module: torch.nn.Module, wanted: Iterable[Slot], whole: tuple[type, ...] = ()
) -> tuple[list[OffloadGroup], list[Slot]]:
    """(groups roughly in the order of their calls, slots that belong to no group).

    The latter must always be in memory. They are buffers, and weights of modules that call other modules
    with weights: such weights are in use for as long as all of those modules together.

    Args:
        whole: classes of modules that form one group with everything in them.
    """
    heads = _heads(module, whole)
    modules: dict[int, list[torch.nn.Module]] = {}
    slots: dict[int, list[Slot]] = {}
    always = []
    for slot in wanted:
        owners = [heads.get(owner_of(module, name)[0]) for name in slot.names]
        if None in owners or not _is_parameter(module, slot):
            always.append(slot)
            continue
        key = id(owners[0])
        slots.setdefault(key, []).append(slot)
        known = modules.setdefault(key, [])
        known += [owner for owner in owners if owner is not None and owner not in known]
    order = dict.fromkeys(map(id, _as_called(module)))
    return [
        OffloadGroup(tuple(modules[key]), tuple(slots[key])) for key in order if key in slots
    ], always


def _as_called(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """A module and all modules in it, roughly in the order of their calls; the first pass prefetches so.

    The order of registration is close to it, except in diffusers' networks. They register the middle
    block after the up blocks, and all residual layers of a block apart from all its attentions,
    although the two are called alternately.
    """
    yield module
    children = dict(module.named_children())
    if "up_blocks" in children and "mid_block" in children:
        children["up_blocks"] = children.pop("up_blocks")
        for last in ("conv_norm_out", "conv_act", "conv_out"):
            if last in children:
                children[last] = children.pop(last)
    turns = [list(children.pop(name)) for name in ("resnets", "attentions") if name in children]
    for child in chain(*zip_longest(*turns), children.values()):
        if child is not None:
            yield from _as_called(child)


def spread(
    groups: Sequence[OffloadGroup],
    budget_bytes: int,
    size: Callable[[OffloadGroup], int] = lambda group: group.size_bytes,
) -> set[OffloadGroup]:
    """As many groups as the budget holds, evenly spread among the others.

    Each group that must be loaded then has the time that its neighbours compute (mmgp does this, too).
    """
    total = sum(map(size, groups))
    if total <= budget_bytes:
        return set(groups)
    chosen, taken, passed = set(), 0, 0
    for group in groups:
        passed += size(group)
        if taken + size(group) <= min(budget_bytes, passed * budget_bytes / total):
            chosen.add(group)
            taken += size(group)
    return chosen


def _heads(
    module: torch.nn.Module, whole: tuple[type, ...]
) -> dict[torch.nn.Module, torch.nn.Module]:
    """Each module whose weights may be unloaded, with the module at whose forward they are loaded."""
    heads: dict[torch.nn.Module, torch.nn.Module] = {}
    for part in module.modules():
        if type(part) in whole:
            heads |= dict.fromkeys(part.modules(), part)
        elif part not in heads and not any(_has_own(child) for child in _below(part)):
            heads[part] = part
    return heads


def _below(part: torch.nn.Module) -> Iterator[torch.nn.Module]:
    return (child for child in part.modules() if child is not part)


def _has_own(part: torch.nn.Module) -> bool:
    return any(parameter is not None for parameter in part._parameters.values())


def _is_parameter(module: torch.nn.Module, slot: Slot) -> bool:
    owner, leaf = owner_of(module, slot.names[0])
    return leaf in owner._parameters
