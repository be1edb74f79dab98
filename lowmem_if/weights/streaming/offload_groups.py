"""What of a network comes and goes together: its units, and which of them stay.

A unit is a layer that has weights of its own, or a whole block where a caller asks for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from math import prod

import torch

from lowmem_if.weights.modules.meta_init import Slot, owner_of
from lowmem_if.weights.streaming.arena import aligned


@dataclass(frozen=True, slots=True, eq=False)
class OffloadGroup:
    """Layers whose weights come before their forward and go after it.

    Several modules only where they share a tied weight; `size_bytes` in the types they compute in,
    `file_bytes` as they are stored.
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
    """Bytes of a tensor in the type it is computed in."""
    item: int = slot.dtype.itemsize
    return prod(slot.stored.shape) * item


def split(
    module: torch.nn.Module, wanted: Iterable[Slot], whole: tuple[type, ...] = ()
) -> tuple[list[OffloadGroup], list[Slot]]:
    """(units about in the order of their calls, slots that belong to none and must always be there).

    The latter are buffers, and weights of modules that call other modules with weights: they are in
    use for as long as all of these together.

    Args:
        whole: classes of modules that are one unit with everything in them.
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
    """A module and all within, about in the order of their calls: what the first pass reads ahead by.

    Registration is near it but in diffusers' networks: there the middle stands behind the way up, and
    all attentions of a block beside all its residual layers, which take turns.
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
    units: Sequence[OffloadGroup],
    budget_bytes: int,
    size: Callable[[OffloadGroup], int] = lambda unit: unit.size_bytes,
) -> set[OffloadGroup]:
    """As many units as the budget holds, evenly strewn among the others.

    So each one that must come has the time that its neighbours take to compute (mmgp does this too).
    """
    total = sum(map(size, units))
    if total <= budget_bytes:
        return set(units)
    chosen, taken, passed = set(), 0, 0
    for unit in units:
        passed += size(unit)
        if taken + size(unit) <= min(budget_bytes, passed * budget_bytes / total):
            chosen.add(unit)
            taken += size(unit)
    return chosen


def _heads(
    module: torch.nn.Module, whole: tuple[type, ...]
) -> dict[torch.nn.Module, torch.nn.Module]:
    """Each module that may come and go, with the one whose forward it does so at."""
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
