"""Streams and events of a fake device, and a check that uses of the same memory are ordered.

Each stream counts its uses of memory and knows up to which use of other streams it is sure to follow
(a vector clock). Two uses of the same bytes, one of them a write, must be ordered by that. Otherwise
there is a race, which a real accelerator would show as a wrong image from time to time. A storage that
gets the block of a freed one inherits its uses, since the allocator does not wait for them. All host
threads count as one: a race with a copy that only another thread waits for is not found.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from lowmem_if.errors import SimulationError

HOST, COMPUTING = "host", "computing"

_EVERYTHING = 1 << 62
"""The end of every storage."""


@dataclass(slots=True)
class Moment:
    """For every stream, up to which use something is sure to follow it."""

    seen: dict[str, int] = field(default_factory=dict)

    def after(self, other: Moment) -> Moment:
        """The moment after both."""
        names = self.seen.keys() | other.seen.keys()
        return Moment({n: max(self.seen.get(n, 0), other.seen.get(n, 0)) for n in names})


@dataclass(frozen=True, slots=True)
class _Use:
    """One use of the bytes from `start` to `end` of a storage."""

    start: int
    end: int
    stream: str
    count: int
    writes: bool


@dataclass(slots=True)
class Timeline:
    """All streams of one device, and the host.

    Attributes:
        current: the stream that computing is ordered on now.
    """

    current: str = COMPUTING
    _moments: dict[str, Moment] = field(default_factory=dict)
    _made: list[FakeStream] = field(default_factory=list)
    _uses: dict[int, list[_Use]] = field(default_factory=dict)
    _last: dict[int, dict[str, int]] = field(default_factory=dict)
    """For every storage on the device, the last use of it or of its block by each stream."""

    def stream(self) -> FakeStream:
        """A new stream."""
        stream = FakeStream(self, f"stream {len(self._moments)}", len(self._made))
        self._moments[stream.name] = Moment()
        self._made.append(stream)
        return stream

    def stream_of(self, stream_id: int, **_device: int) -> FakeStream:
        """A stream that was made before, by its number."""
        return self._made[stream_id]

    @property
    def streams(self) -> tuple[str, ...]:
        return tuple(self._moments)

    def moment(self, stream: str) -> Moment:
        """The moment that a stream has reached."""
        return self._moments.setdefault(stream, Moment())

    def wait(self, stream: str, moment: Moment) -> None:
        """Let a stream, or the host, continue only after a moment."""
        self._moments[stream] = self.moment(stream).after(moment)

    def watch(self, tensor: torch.Tensor) -> None:
        """From now on check the uses of a tensor's storage: more than one stream uses it."""
        self._watch(tensor.untyped_storage()._cdata)

    def _watch(self, storage: int) -> None:
        if storage not in self._uses:
            last = self._last.get(storage, {})
            self._uses[storage] = [
                _Use(0, _EVERYTHING, stream, count, writes=True) for stream, count in last.items()
            ]

    def use(self, tensor: torch.Tensor, *, stream: str, writes: bool) -> None:
        """Record a use of a tensor on a stream; the host orders its work in sequence.

        Raises:
            SimulationError: it is not ordered after an earlier use of the same bytes.
        """
        key = tensor.untyped_storage()._cdata
        on_device = tensor.device.type != "cpu"
        if not on_device and key not in self._uses:
            return
        if stream != HOST:
            self.wait(stream, self.moment(HOST))
        moment = self.moment(stream)
        count = moment.seen.get(stream, 0) + 1
        moment.seen[stream] = count
        if key in self._uses:
            self._use(tensor, stream, count, moment, writes=writes)
        if on_device:
            self._last.setdefault(key, {})[stream] = count

    def _use(
        self, tensor: torch.Tensor, stream: str, count: int, moment: Moment, *, writes: bool
    ) -> None:
        key = tensor.untyped_storage()._cdata
        start = tensor.storage_offset() * tensor.element_size()
        use = _Use(start, start + tensor.numel() * tensor.element_size(), stream, count, writes)
        earlier = self._uses[key]
        for other in earlier:
            meets = other.start < use.end and use.start < other.end
            ordered = moment.seen.get(other.stream, 0) >= other.count
            if meets and (writes or other.writes) and not ordered:
                what = "writes over what" if writes else "reads what"
                raise SimulationError(
                    f"a race: {stream} {what} {other.stream} may not be done with; "
                    "this is a bug of lowmem-if's streaming"
                )
        covered = (use.stream, use.writes)
        self._uses[key] = [
            other
            for other in earlier
            if not (
                (other.stream, other.writes) == covered
                and use.start <= other.start
                and other.end <= use.end
            )
        ] + [use]

    def inherit(self, storage: int, used: dict[str, int]) -> None:
        """A storage got the block of others, which these streams may still use."""
        self._last[storage] = dict(used)
        if used.keys() - {COMPUTING}:
            self._watch(storage)

    def forget(self, storage: int) -> dict[str, int]:
        """A storage was freed; returns streams that the host has not waited for, with their last use."""
        self._uses.pop(storage, None)
        done = self.moment(HOST).seen
        last = self._last.pop(storage, {})
        return {stream: count for stream, count in last.items() if done.get(stream, 0) < count}


class FakeStream:
    """What the code here uses of `torch.Stream` and `torch.cuda.Stream`."""

    device_index, device_type = 0, 1

    def __init__(self, timeline: Timeline, name: str, stream_id: int = 0) -> None:
        self._timeline, self.name, self.stream_id = timeline, name, stream_id
        self._outer: list[str] = []

    def __enter__(self) -> FakeStream:
        self._outer.append(self._timeline.current)
        self._timeline.current = self.name
        return self

    def __exit__(self, *_error: object) -> None:
        self._timeline.current = self._outer.pop()

    def record_event(self, _event: Any = None) -> StreamEvent:
        event = StreamEvent(self._timeline)
        event.record(self)
        return event

    def wait_event(self, event: StreamEvent) -> None:
        self._timeline.wait(self.name, event.moment)

    def wait_stream(self, other: FakeStream) -> None:
        self.wait_event(other.record_event())

    def synchronize(self) -> None:
        self._timeline.wait(HOST, self._timeline.moment(self.name))


@dataclass(slots=True)
class StreamEvent:
    """A moment of a stream that others can wait for."""

    timeline: Timeline
    moment: Moment = field(default_factory=Moment)

    def record(self, stream: FakeStream) -> None:
        """Remember what the stream has reached now."""
        self.moment = Moment(dict(self.timeline.moment(stream.name).seen))

    def synchronize(self) -> None:
        self.timeline.wait(HOST, self.moment)

    def query(self) -> bool:
        """Done only if the host has waited for it: the worst case."""
        seen = self.timeline.moment(HOST).seen
        return all(seen.get(name, 0) >= count for name, count in self.moment.seen.items())
