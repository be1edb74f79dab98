"""Run a network whose weights stay in the checkpoint: units come before their forward and go after it.

A thread brings the units that are next by the order in which they last followed one another; the first
pass goes by the order of registration and is corrected as it goes. A pass that is the only one brings
nothing twice: that the first unit follows the last one is learnt from the second pass. On Apple GPUs
there is no such thread: each unit is brought when it is needed.

`resident_bytes` of the units, evenly strewn, never leave: at 0 everything streams, from the network's
own size on nothing does. What is computed does not depend on any of this, to the last bit
(`tests/weights/streaming/test_streamer.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import psutil
import torch

from lowmem_if.cascade.lora import Lora
from lowmem_if.cascade.transfer_sizes import LEAST_WINDOW_BYTES, WINDOW_UNITS
from lowmem_if.hardware.cgroups import tightest_group
from lowmem_if.weights.files.checkpoint import Checkpoint
from lowmem_if.weights.modules.lora_merge import NOTHING, Merges
from lowmem_if.weights.modules.materialize import fill, torch_threads
from lowmem_if.weights.modules.meta_init import (
    Slot,
    as_weight,
    move_buffers,
    owner_of,
    place,
    slots,
)
from lowmem_if.weights.streaming.offload_groups import OffloadGroup, split, spread
from lowmem_if.weights.streaming.transports import (
    CastTransport,
    DeviceTransport,
    MappedTransport,
    Transport,
)

_CACHE_RESERVE_BYTES = 700_000_000
"""Of the memory that is available, left to all else when deciding how much of a file may stay cached."""


class _Closed(Exception):
    """Nobody wants the weights any more."""


class Streamed:
    """A network that computes with weights from its checkpoint; a context manager, or `close()` it.

    Attributes:
        module: to be called as if its weights were there.
        streamed_bytes: of the weights that come and go in every pass.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: str,
        *,
        resident_bytes: int = 0,
        whole: tuple[type, ...] = (),
        between: Callable[[], None] = lambda: None,
        lora: Sequence[Lora] = (),
    ) -> None:
        """Take over a skeleton and its checkpoint, which is closed in the end, or at once on an error.

        Args:
            resident_bytes: of units that never leave; in a mapped file, whose pages are kept cached.
            whole: classes of modules that come and go as a whole, instead of layer by layer.
            between: called before every read of the file, on the reading thread.
            lora: what is merged into each weight whenever it comes.

        Raises:
            CheckpointError: the files do not match the network, or a LoRA does not.
        """
        self.module, self._checkpoint, self._between = module, checkpoint, between
        self._changed = threading.Condition()
        self._here: set[OffloadGroup] = set()
        self._asked: OffloadGroup | None = None
        self._in_use: dict[OffloadGroup, int] = {}
        self._error: BaseException | None = None
        self._owners: dict[Slot, list[tuple[torch.nn.Module, str]]] = {}
        self._absent: dict[Slot, torch.Tensor] = {}
        self._closing = False
        self._merges = NOTHING
        self._hooks: list[Any] = []
        self._thread = (
            threading.Thread(target=self._bring_all, name="streaming", daemon=True)
            if brings_beside(device)
            else None
        )
        try:
            wanted = slots(module, checkpoint, dtype)
            self._merges = Merges.into(wanted, lora)
            self._take_over(wanted, device, resident_bytes, whole)
        except BaseException:
            self._merges.close()
            checkpoint.close()
            raise

    def _take_over(
        self, wanted: list[Slot], device: str, resident_bytes: int, whole: tuple[type, ...]
    ) -> None:
        self._owners = {s: [owner_of(self.module, name) for name in s.names] for s in wanted}
        units, always = split(self.module, wanted, whole)
        staying = spread(units, resident_bytes)
        self._units = [unit for unit in units if unit not in staying]
        self._follower = dict(pairwise([None, *self._units]))
        self._current: OffloadGroup | None = None
        self._of_module = {module: unit for unit in self._units for module in unit.modules}
        self.streamed_bytes = sum(unit.size_bytes for unit in self._units)
        as_stored = not self._merges and all(_is_as_stored(slot) for slot in wanted)
        mapped = device == "cpu" and as_stored
        if not mapped:
            always = [*always, *(slot for unit in staying for slot in unit.slots)]
        fill(self.module, self._checkpoint, always, device, self._merges)
        move_buffers(self.module, device)
        self._lane = self._make_lane(mapped, device)
        if mapped:
            self._settle(staying)
        self._absent = {
            slot: torch.full((), torch.nan, dtype=slot.dtype, device=device)
            for unit in self._units
            for slot in unit.slots
        }
        for unit in self._units:
            self._put(unit, [self._absent[slot].expand(slot.stored.shape) for slot in unit.slots])
        self._hook()
        if self._thread is not None:
            self._thread.start()

    def _make_lane(self, mapped: bool, device: str) -> Transport:
        largest = max((unit.size_bytes for unit in self._units), default=0)
        window = max(WINDOW_UNITS * largest, min(LEAST_WINDOW_BYTES, self.streamed_bytes))
        cached = _cacheable(self._units, window)
        arguments = (self._checkpoint, window, cached.__contains__, self._pause)
        if device != "cpu":
            return DeviceTransport(*arguments, device, self._merges)
        return MappedTransport(*arguments) if mapped else CastTransport(*arguments, self._merges)

    def _settle(self, staying: Collection[OffloadGroup]) -> None:
        """Put the mapped weights that stay into their places and their pages into the cache."""
        for unit in staying:
            self._lane.bring(unit)
            self._put(unit, self._lane.views(unit))

    def _hook(self) -> None:
        for module in self._of_module:
            self._hooks += [
                module.register_forward_pre_hook(lambda module, _inputs: self._begin(module)),
                module.register_forward_hook(
                    lambda module, _inputs, _output: self._end(module), always_call=True
                ),
            ]

    def __enter__(self) -> Streamed:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread, take the hooks and the weights off the network, close the files."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join()
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._of_module = [], {}
        for names, weight in list(_all_weights(self.module)):
            place(self.module, names, torch.empty_like(weight, device="meta"))
        self._owners, self._absent, self._here, self._in_use = {}, {}, set(), {}
        self._lane.close()
        self._merges.close()
        self._checkpoint.close()

    @contextmanager
    def holding(self, module: torch.nn.Module) -> Iterator[None]:
        """Keep the weights of a unit in place over several forwards of `module`."""
        held = module in self._of_module
        if held:
            self._begin(module)
        try:
            yield
        finally:
            if held and module in self._of_module:
                self._end(module)

    # --- on the computing thread

    def _begin(self, module: torch.nn.Module) -> None:
        unit = self._of_module[module]
        with self._changed:
            if self._current is not unit:
                self._follower[self._current] = unit
            self._current = unit
            if not self._in_use.get(unit):
                self._wait_for(unit)
                self._put(unit, self._lane.views(unit))
            self._in_use[unit] = self._in_use.get(unit, 0) + 1
            self._changed.notify_all()

    def _wait_for(self, unit: OffloadGroup) -> None:
        self._asked = unit
        if self._thread is None:
            self._bring_here()
        else:
            self._changed.notify_all()
            self._changed.wait_for(lambda: unit in self._here or self._error is not None)
        self._asked = None
        if self._error is not None:
            raise self._error

    def _bring_here(self) -> None:
        """Bring the unit that is asked for on this thread, where no other may use the accelerator."""
        if self._error is not None or (unit := self._wanted_now()) is None:
            return
        try:
            # Merged weights are then the same as on a thread of their own, to the last bit.
            with torch_threads(1):
                self._bring(unit)
        except BaseException as error:  # noqa: BLE001  `_wait_for` raises it, and so do all later ones
            self._error = error

    def _end(self, module: torch.nn.Module) -> None:
        unit = self._of_module[module]
        with self._changed:
            if not self._in_use.get(unit):
                return  # its beginning failed
            self._in_use[unit] -= 1
            if not self._in_use[unit]:
                self._put(unit, [self._absent[s].expand(s.stored.shape) for s in unit.slots])
                self._send_away(unit)
            self._changed.notify_all()

    def _put(self, unit: OffloadGroup, weights: list[torch.Tensor]) -> None:
        for slot, weight in zip(unit.slots, weights, strict=True):
            parameter = as_weight(weight)
            for owner, leaf in self._owners[slot]:
                owner._parameters[leaf] = parameter

    def _send_away(self, unit: OffloadGroup) -> None:
        self._here.discard(unit)
        self._lane.leave(unit)

    # --- on the bringing thread, if there is one

    def _bring_all(self) -> None:
        try:
            if self._merges:
                # Products are as when all is filled at the beginning, and leave the cores to computing.
                torch.set_num_threads(1)  # of this thread alone
            while True:
                self._bring(self._next())
        except _Closed:
            return
        except BaseException as error:  # noqa: BLE001  it is raised where the weights are waited for
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _bring(self, unit: OffloadGroup) -> None:
        self._checkpoint.check()
        self._merges.check()
        self._lane.bring(unit)
        with self._changed:
            self._here.add(unit)
            self._changed.notify_all()

    def _pause(self) -> None:
        if self._closing:
            raise _Closed
        self._between()

    def _next(self) -> OffloadGroup:
        """The next unit that is worth bringing, with room set aside for it; waits for one."""
        with self._changed:
            while not self._closing:
                unit = self._wanted_now() or self._upcoming()
                if unit is not None:
                    return unit
                self._changed.wait()
            raise _Closed

    def _wanted_now(self) -> OffloadGroup | None:
        """The unit that the computing thread waits for; all that is idle makes room for it."""
        unit = self._asked
        if unit is None or unit in self._here:
            return None
        if not self._lane.room(unit):
            self._send_away_idle(self._here)
            self._lane.room(unit, force=True)
        return unit

    def _upcoming(self) -> OffloadGroup | None:
        """The first unit on the way ahead that is not here, if there is room for it or can be made."""
        ahead: list[OffloadGroup] = []
        unit = self._follower.get(self._current)
        while unit in self._here and unit is not self._current and unit not in ahead:
            ahead.append(unit)
            unit = self._follower.get(unit)
        if unit is None or unit in self._here:
            return None
        if self._lane.room(unit):
            return unit
        strays = self._here.difference(ahead, [self._current])
        return unit if self._send_away_idle(strays) and self._lane.room(unit) else None

    def _send_away_idle(self, units: Collection[OffloadGroup]) -> bool:
        """Whether there was any."""
        idle = [unit for unit in units if not self._in_use.get(unit)]
        for unit in idle:
            self._send_away(unit)
        return bool(idle)


def brings_beside(device: str) -> bool:
    """Whether a thread of its own brings the weights of a network that computes on `device`.

    Not on Apple GPUs: torch crashes there when two threads use the GPU (pytorch issue 197805). Copies to
    it wait for each other anyway, so that little is lost.
    """
    return device.partition(":")[0] != "mps"


def _all_weights(module: torch.nn.Module) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Every parameter with all its names."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for parameter in module.parameters():
        yield names[id(parameter)], parameter


def _is_as_stored(slot: Slot) -> bool:
    """Whether a mapped file can be computed with as it is."""
    stored = slot.stored
    return bool(slot.dtype == stored.dtype) and stored.header.offset % stored.dtype.itemsize == 0


def _cacheable(units: list[OffloadGroup], window_bytes: int) -> set[OffloadGroup]:
    """The units whose pages may stay in the system's cache when they leave: what memory there is for.

    A file that is read in a circle and does not fit pushes out just what is needed next; if some of
    it is given up after use instead, the rest stays.
    """
    group = tightest_group()
    available = min(psutil.virtual_memory().available, group.available_bytes if group else 1 << 62)
    budget = max(0, available - window_bytes - _CACHE_RESERVE_BYTES)
    return spread(units, budget, lambda unit: unit.file_bytes)
