"""On which thread offload groups are loaded: one of their own, or the computing one.

`Streamed` asks `wait_for` with `changed` held. It holds it, too, whenever it uses the schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Condition, Event, Thread
from typing import Protocol

import torch

from lowmem_if.weights.modules.materialize import torch_threads
from lowmem_if.weights.streaming.offload_groups import OffloadGroup
from lowmem_if.weights.streaming.schedule import Schedule

Load = Callable[[OffloadGroup], None]


class Closed(Exception):
    """The network is being closed, and its weights are not needed any more."""


class Prefetch(Protocol):
    """Loads groups by a schedule.

    Attributes:
        changed: to be held while the schedule is used, and notified when it has changed.
    """

    changed: Condition

    def start(self) -> None:
        """Begin to load."""

    def wait_for(self, group: OffloadGroup) -> None:
        """Return when a group is loaded. What has failed once is raised again every time."""

    def close(self) -> None:
        """Stop loading; returns when nothing is being loaded any more."""


MakePrefetch = Callable[[Schedule, Load, Event, bool], Prefetch]
"""Called with the schedule, what loads a group, what is set when loading must stop, and whether products
are computed while loading (by LoRAs)."""


class PrefetchThread:
    """A thread loads groups ahead, as far as there is memory."""

    def __init__(self, schedule: Schedule, load: Load, stop: Event, multiplies: bool) -> None:
        self.changed = Condition()
        self._schedule, self._load, self._stop = schedule, load, stop
        self._multiplies = multiplies
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="streaming", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait_for(self, group: OffloadGroup) -> None:
        self._schedule.request(group)
        self.changed.notify_all()
        self.changed.wait_for(lambda: self._schedule.is_loaded(group) or self._error is not None)
        self._schedule.request(None)
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        with self.changed:
            self._stop.set()
            self.changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            if self._multiplies:
                # The bits are then those of `fill`, and the cores stay free for computing.
                torch.set_num_threads(1)  # of this thread alone
            while True:
                group = self._next()
                self._load(group)
                with self.changed:
                    self._schedule.loaded(group)
                    self.changed.notify_all()
        except Closed:
            return
        except BaseException as error:  # noqa: BLE001  `wait_for` raises it on the computing thread
            with self.changed:
                self._error = error
                self.changed.notify_all()

    def _next(self) -> OffloadGroup:
        """The next group that is worth loading, with memory reserved; waits for one."""
        with self.changed:
            while not self._stop.is_set():
                group = self._schedule.wanted() or self._schedule.upcoming()
                if group is not None:
                    return group
                self.changed.wait()
            raise Closed


class LoadOnDemand:
    """The computing thread loads each group when it needs it."""

    def __init__(self, schedule: Schedule, load: Load, _stop: Event, _multiplies: bool) -> None:
        self.changed = Condition()
        self._schedule, self._load = schedule, load
        self._error: BaseException | None = None

    def start(self) -> None:
        """Nothing is loaded before it is needed."""

    def wait_for(self, group: OffloadGroup) -> None:
        self._schedule.request(group)
        if self._error is None:
            self._load_all()
        self._schedule.request(None)
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Nothing is being loaded."""

    def next(self) -> OffloadGroup | None:
        """What is worth loading now, with memory reserved."""
        return self._schedule.wanted()

    def _load_all(self) -> None:
        try:
            # Merged weights have then the bits that they have on a thread of their own.
            with torch_threads(1):
                while (group := self.next()) is not None:
                    self._load(group)
                    self._schedule.loaded(group)
        except BaseException as error:  # noqa: BLE001  `wait_for` raises it now and later
            self._error = error


def prefetch_for(device: str) -> MakePrefetch:
    """How groups are loaded for a network that computes on `device`.

    Not by a thread on Apple GPUs: torch crashes there when two threads use the GPU (pytorch issue
    197805). Copies to it wait for each other anyway, so little is lost.
    """
    return LoadOnDemand if device.partition(":")[0] == "mps" else PrefetchThread
