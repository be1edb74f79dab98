"""Run a network whose weights stay in the checkpoint: each offload group is loaded before its forward
and unloaded after it.

`schedule` decides what is loaded next, `prefetch` on which thread, `transports` how; here are the
hooks on the network's modules. Groups of `resident_bytes`, evenly spread, are never unloaded: at 0
everything streams, from the network's own size on nothing does. None of this changes what is computed,
to the last bit (`tests/weights/streaming/test_streamer.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import Event
from typing import Any

import torch

from lowmem_if.cascade.lora.adapter import Lora
from lowmem_if.weights.files.checkpoint import Checkpoint
from lowmem_if.weights.modules.lora_merge import NOTHING, Merges
from lowmem_if.weights.modules.materialize import fill
from lowmem_if.weights.modules.meta_init import (
    Slot,
    as_weight,
    move_buffers,
    owner_of,
    place,
    slots,
)
from lowmem_if.weights.modules.quantised_weights import QuantisedWeights
from lowmem_if.weights.streaming.offload_groups import (
    Division,
    OffloadGroup,
    codes_of,
    divide,
    divide_quantised,
    slots_of,
)
from lowmem_if.weights.streaming.prefetch import Closed, LoadOnDemand, MakePrefetch, prefetch_for
from lowmem_if.weights.streaming.quantised_transport import QuantisedTransport
from lowmem_if.weights.streaming.schedule import Schedule
from lowmem_if.weights.streaming.transports import Transport, is_as_stored, transport_of


class Streamed:
    """A network that computes with weights from its checkpoint; a context manager, or `close()` it.

    Attributes:
        module: the network, to be called as if its weights were in memory.
        streamed_bytes: of the weights that every pass loads and unloads.
        weights_remain: whether a weight is still right after its layer's forward, as a backward pass
            needs it: nothing streams, or weights are views of the mapped files. The module has this
            attribute, too.
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
        channels_last: bool = False,
        storage: str | None = None,
        prefetch: MakePrefetch | None = None,
        most_threads: int | None = None,
    ) -> None:
        """Take over a network on the meta device and its checkpoint.

        The checkpoint is closed by `close()`, or at once on an error.

        Args:
            resident_bytes: of groups that are never unloaded; in a mapped file, whose pages are kept
                cached.
            whole: classes of modules that are loaded as a whole instead of layer by layer.
            between: called before every read of the file, on the reading thread.
            lora: what is merged into each weight whenever it is loaded.
            channels_last: the layout of convolutions' weights on a CPU; mapped ones keep their file's.
            storage: `int8` or `int4`, for a UNet's weights that are kept as whole numbers and only
                become `dtype` while their layer computes; None: all are kept in `dtype`.
            prefetch: on which thread groups are loaded; None: as the device needs it.
            most_threads: how many threads read the resident weights; None: as many as read fastest.

        Raises:
            CheckpointError: the files do not match the network, or a LoRA does not.
        """
        self.module, self._checkpoint, self._between = module, checkpoint, between
        self._owners: dict[Slot, list[tuple[torch.nn.Module, str]]] = {}
        self._absent: dict[Slot, torch.nn.Parameter] = {}
        self._stop = Event()
        self._merges = NOTHING
        self._quantised = None if storage is None else QuantisedWeights(storage, device)
        self._hooks: list[Any] = []
        with ExitStack() as undo:
            undo.callback(lambda: self._checkpoint.close())
            undo.callback(lambda: self._merges.close())
            wanted = slots(module, checkpoint, dtype, channels_last=channels_last)
            self._merges = Merges.into(wanted, lora)
            parts = (
                divide(module, wanted, resident_bytes, whole)
                if storage is None
                else divide_quantised(module, wanted, resident_bytes, storage)
            )
            always = self._adopt(parts, wanted, device)
            if self._quantised is not None:
                self._quantised.read_scales(slots_of(parts.streamed), checkpoint)
                self._quantised.keep(slots_of(parts.kept), checkpoint, self._merges, most_threads)
            fill(module, checkpoint, always, device, self._merges, most_threads)
            move_buffers(module, device)
            keeps_all = self._quantised is not None and not parts.streamed
            if keeps_all:
                self._leave_files()
            self._transport = self._make_transport(parts, device)
            self._schedule = Schedule(self._groups, self._transport)
            make = prefetch or (LoadOnDemand if keeps_all else prefetch_for(device))
            self._prefetch = make(self._schedule, self._load, self._stop, bool(self._merges))
            self._take_over(device)
            undo.pop_all()

    def _adopt(self, parts: Division, wanted: list[Slot], device: str) -> list[Slot]:
        """Take over what streams; returns what is read once and remains."""
        self._owners = {s: [owner_of(self.module, name) for name in s.names] for s in wanted}
        self._groups = parts.moving
        self._of_module = {module: group for group in self._groups for module in group.modules}
        self.streamed_bytes = sum(group.size_bytes for group in parts.streamed)
        as_stored = not self._merges and all(is_as_stored(slot) for slot in wanted)
        self._mapped = device == "cpu" and as_stored and self._quantised is None
        self._mapped_residents: Collection[OffloadGroup] = parts.kept if self._mapped else ()
        self.weights_remain = self._mapped or not self._groups
        self.module.weights_remain = self.weights_remain
        if self._mapped or self._quantised is not None:
            return parts.always
        return [*parts.always, *slots_of(parts.kept)]

    def _leave_files(self) -> None:
        """Close all files, which are not needed any more."""
        self._checkpoint.close()
        self._merges.close()
        self._checkpoint, self._merges = Checkpoint(()), NOTHING

    def _take_over(self, device: str) -> None:
        """Put placeholders where weights are absent, hook the modules, and begin to load."""
        self._settle(self._mapped_residents)
        self._absent = {
            slot: _absent(slot, device) for group in self._groups for slot in group.slots
        }
        for group in self._groups:
            self._put_absent(group)
        self._hook()
        self._prefetch.start()

    def _make_transport(self, parts: Division, device: str) -> Transport:
        def plain(groups: list[OffloadGroup], *, mapped: bool) -> Transport:
            return transport_of(
                groups, self._checkpoint, device,
                mapped=mapped, between=self._pause, merges=self._merges,
            )  # fmt: skip

        if self._quantised is None:
            return plain(self._groups, mapped=self._mapped)
        coded = {group: codes_of(group) for group in parts.streamed}
        inner = plain(list(coded.values()), mapped=device == "cpu") if coded else None
        return QuantisedTransport(self._quantised, self._groups, coded, inner, device)

    def _settle(self, resident: Collection[OffloadGroup]) -> None:
        """Put mapped weights that are never unloaded in place, and their pages into the cache."""
        for group in resident:
            self._transport.load(group)
            self._put(group, self._transport.tensors(group))

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
        self._prefetch.close()
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._of_module = [], {}
        for names, weight in list(_all_weights(self.module)):
            place(self.module, names, torch.empty_like(weight, device="meta"))
        self._owners, self._absent = {}, {}
        self._transport.close()
        self._merges.close()
        self._checkpoint.close()

    @contextmanager
    def holding(self, module: torch.nn.Module) -> Iterator[None]:
        """Keep the weights of a module's group in place over several forwards of it."""
        held = module in self._of_module
        if held:
            self._begin(module)
        try:
            yield
        finally:
            if held and module in self._of_module:
                self._end(module)

    def begin_last_pass(self, modules: Sequence[torch.nn.Module]) -> None:
        """Prefetch nothing after the pass that has begun, so that no weight is read in vain.

        Args:
            modules: what the pass computes with, in order.
        """
        groups = [self._of_module[module] for module in modules if module in self._of_module]
        if groups:
            with self._prefetch.changed:
                self._schedule.end_with(groups[-1])

    # --- on the computing thread

    def _begin(self, module: torch.nn.Module) -> None:
        group, changed = self._of_module[module], self._prefetch.changed
        with changed:
            if self._schedule.reach(group):
                self._prefetch.wait_for(group)
                self._put(group, self._transport.tensors(group))
            self._schedule.enter(group)
            changed.notify_all()

    def _end(self, module: torch.nn.Module) -> None:
        group, changed = self._of_module[module], self._prefetch.changed
        with changed:
            if self._schedule.leave(group):
                self._put_absent(group)
                self._schedule.release(group)
            changed.notify_all()

    def _put(self, group: OffloadGroup, weights: list[torch.Tensor]) -> None:
        for slot, weight in zip(group.slots, weights, strict=True):
            self._place(slot, as_weight(weight))

    def _put_absent(self, group: OffloadGroup) -> None:
        for slot in group.slots:
            self._place(slot, self._absent[slot])

    def _place(self, slot: Slot, parameter: torch.nn.Parameter) -> None:
        for owner, leaf in self._owners[slot]:
            # A user's own loop may say `requires_grad_(False)`, which changes bits; see `as_weight`.
            parameter.requires_grad = owner._parameters[leaf].requires_grad
            owner._parameters[leaf] = parameter

    # --- on the loading thread, which may be the same

    def _load(self, group: OffloadGroup) -> None:
        self._checkpoint.check()
        self._merges.check()
        self._transport.load(group)

    def _pause(self) -> None:
        if self._stop.is_set():
            raise Closed
        self._between()


def _absent(slot: Slot, device: str) -> torch.nn.Parameter:
    """NaNs of a weight's shape, all of them one number: a forward that computed with them would show."""
    return as_weight(
        torch.full((), torch.nan, dtype=slot.dtype, device=device).expand(slot.stored.shape)
    )


def _all_weights(module: torch.nn.Module) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Every parameter with all its names."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for parameter in module.parameters():
        yield names[id(parameter)], parameter
