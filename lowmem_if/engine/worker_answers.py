"""What a worker says to the process that owns it: events, the state of its cache, and answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Annotated, ClassVar, Literal

from pydantic import Field, TypeAdapter

from lowmem_if import errors
from lowmem_if.engine.announcements.planned_event import RunPlanned
from lowmem_if.engine.events import (
    CacheHit,
    Drawing,
    Event,
    Evicted,
    ImageSaved,
    Loading,
    Notice,
    Preview,
    Retry,
    RunOpened,
    StepFinished,
    StepResumed,
    StepSkipped,
    StepStarted,
    WorkerStarting,
)


@dataclass(frozen=True, slots=True)
class LoadedComponent:
    """A component that remains loaded: its strategy, and the memory that it holds on its device."""

    component: str
    strategy: str
    storage_dtype: str
    device: str
    bytes: int


@dataclass(frozen=True, slots=True)
class CacheState(Event):
    """Which components a worker keeps loaded now; read by the worker's process handle only."""

    loaded: tuple[LoadedComponent, ...]
    kind: Literal["cache_state"] = "cache_state"


@dataclass(frozen=True, slots=True)
class CommandDone(Event):
    """The answer to a command: all is done."""

    kind: Literal["done"] = "done"


@dataclass(frozen=True, slots=True)
class CommandFailed(Event):
    """The answer to a command: a known error, `error` being the name of its class."""

    error: str
    text: str
    kind: Literal["error"] = "error"
    _renamed: ClassVar = {"name": "error"}

    def to_error(self) -> errors.LowmemError:
        """The worker's error as this process's own."""
        cls = getattr(errors, self.error, errors.LowmemError)
        error: errors.LowmemError = cls.__new__(cls)
        Exception.__init__(error, self.text)
        return error


@dataclass(frozen=True, slots=True)
class MemoryRanOut(Event):
    """The answer to a command: memory ran out.

    Attributes:
        resource: `RAM` where nothing else can be meant, else empty.
        available_bytes: free VRAM, if too little was seen before anything failed; else 0.
    """

    text: str
    resource: str = ""
    available_bytes: int = 0
    kind: Literal["out_of_memory"] = "out_of_memory"
    _renamed: ClassVar = {"name": "resource", "total": "available_bytes"}


@dataclass(frozen=True, slots=True)
class SegmentsRefused(Event):
    """The answer to a command: the driver refuses torch's expandable segments."""

    text: str
    kind: Literal["segments_fail"] = "segments_fail"


Answer = CommandDone | CommandFailed | MemoryRanOut | SegmentsRefused
"""How a worker ends a command."""

AnyEvent = (
    RunPlanned | RunOpened | WorkerStarting | StepStarted | StepResumed | StepFinished | StepSkipped
    | Loading | CacheHit | Drawing | Preview | ImageSaved | Evicted | Notice | Retry | CacheState
    | Answer
)  # fmt: skip


@cache
def reader() -> TypeAdapter[AnyEvent]:
    """What reads and checks events; making it takes some milliseconds."""
    return TypeAdapter(Annotated[AnyEvent, Field(discriminator="kind")])


def read_event(line: str) -> AnyEvent:
    """The event that `Event.to_line` wrote.

    Raises:
        ValidationError: it is no event.
    """
    return reader().validate_json(line)


@dataclass(frozen=True, slots=True)
class MemoryShortage:
    """Memory ran out.

    Attributes:
        component: whose step it was; empty: before any step.
        resource, text: what ran out, and what the library or the system said.
        others: components that were loaded as well.
        is_new: whether the worker had done nothing before this run.
        available_bytes: free VRAM, if too little was seen before loading; else 0.
    """

    component: str
    resource: str
    text: str
    others: tuple[str, ...]
    is_new: bool
    available_bytes: int = 0
