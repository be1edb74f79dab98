"""What happens in a run, as small values: from the worker through a pipe to the callers' `report`.

Every kind of event is a class with the fields of that kind; `kind` names it in JSON. All kinds have the
attributes of version 0.1: `component`, `number`, `done`, `total`, `batch`, `text` and `name`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

_BEFORE = {"component": "", "number": 0, "done": 0, "total": 0, "batch": 1, "text": "", "name": ""}
"""What the attributes of version 0.1 were where a kind had no use for them."""


class Event:
    """One thing that happened; `kind` says what."""

    __slots__ = ()
    _renamed: ClassVar[Mapping[str, str]] = {}
    """Attributes of version 0.1 -> the fields that hold their values now."""

    if TYPE_CHECKING:

        @property
        def kind(self) -> str: ...
        @property
        def component(self) -> str: ...
        @property
        def number(self) -> int: ...
        @property
        def done(self) -> int: ...
        @property
        def total(self) -> int: ...
        @property
        def batch(self) -> int: ...
        @property
        def text(self) -> str: ...
        @property
        def name(self) -> str: ...
    else:

        def __getattr__(self, name: str) -> Any:
            if name in self._renamed:
                return getattr(self, self._renamed[name])
            if name in _BEFORE:
                return _BEFORE[name]
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def to_line(self) -> str:
        """The event as a line of JSON, without the end of the line."""
        return json.dumps(asdict(self), ensure_ascii=True)  # type: ignore[call-overload]


@dataclass(frozen=True, slots=True)
class RunOpened(Event):
    """The run folder in which pictures will be drawn."""

    folder: str
    kind: Literal["opened"] = "opened"
    _renamed: ClassVar = {"text": "folder"}


@dataclass(frozen=True, slots=True)
class WorkerStarting(Event):
    """A worker process starts, and imports the libraries."""

    kind: Literal["starting"] = "starting"


@dataclass(frozen=True, slots=True)
class StepStarted(Event):
    """A component begins its step, with `images` pictures of which `batch` are drawn together."""

    component: str
    images: int
    batch: int = 1
    kind: Literal["started"] = "started"
    _renamed: ClassVar = {"total": "images"}


@dataclass(frozen=True, slots=True)
class StepResumed(Event):
    """Some pictures of a step were drawn before."""

    component: str
    images_done: int
    images: int
    kind: Literal["resumed"] = "resumed"
    _renamed: ClassVar = {"done": "images_done", "total": "images"}


@dataclass(frozen=True, slots=True)
class StepFinished(Event):
    """A component's step is done."""

    component: str
    kind: Literal["finished"] = "finished"


@dataclass(frozen=True, slots=True)
class StepSkipped(Event):
    """A component's step was done before."""

    component: str
    kind: Literal["skipped"] = "skipped"


@dataclass(frozen=True, slots=True)
class Loading(Event):
    """How much of a component's weights has been loaded."""

    component: str
    loaded_bytes: int
    total_bytes: int
    kind: Literal["loading"] = "loading"
    _renamed: ClassVar = {"done": "loaded_bytes", "total": "total_bytes"}


@dataclass(frozen=True, slots=True)
class CacheHit(Event):
    """A component is still loaded from before."""

    component: str
    held_bytes: int
    kind: Literal["cache_hit"] = "cache_hit"
    _renamed: ClassVar = {"total": "held_bytes"}


@dataclass(frozen=True, slots=True)
class Drawing(Event):
    """A denoising step of a picture is done; for the text encoder, one of its texts."""

    component: str
    image_number: int
    step: int
    steps: int
    kind: Literal["drawing"] = "drawing"
    _renamed: ClassVar = {"number": "image_number", "done": "step", "total": "steps"}


@dataclass(frozen=True, slots=True)
class Preview(Event):
    """An unfinished picture was written to `file`."""

    component: str
    image_number: int
    file: str
    step: int = 0
    steps: int = 0
    kind: Literal["preview"] = "preview"
    _renamed: ClassVar = {
        "number": "image_number",
        "text": "file",
        "done": "step",
        "total": "steps",
    }


@dataclass(frozen=True, slots=True)
class ImageSaved(Event):
    """A component's picture was written to `file`."""

    component: str
    image_number: int
    file: str
    kind: Literal["saved"] = "saved"
    _renamed: ClassVar = {"number": "image_number", "text": "file"}


@dataclass(frozen=True, slots=True)
class ReleaseProof:
    """What was left of a component after it was unloaded.

    Attributes:
        alive: classes that still have instances.
        ram_left_bytes, vram_left_bytes: memory that was not freed; up to `allowed_bytes` is normal.
        reserved_left_bytes: VRAM that torch's allocator still holds from the driver.
        driver_left_bytes: VRAM in use beyond what torch holds.
    """

    alive: tuple[str, ...]
    ram_left_bytes: int
    vram_left_bytes: int
    allowed_bytes: int
    reserved_left_bytes: int = 0
    driver_left_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """The proof as a JSON object."""
        return asdict(self) | {"alive": list(self.alive)}


@dataclass(frozen=True, slots=True)
class Evicted(Event):
    """A component that had stayed loaded was unloaded."""

    component: str
    proof: ReleaseProof
    kind: Literal["evicted"] = "evicted"

    @property
    def text(self) -> str:
        """The proof as JSON, as in version 0.1."""
        return json.dumps(self.proof.to_json())


@dataclass(frozen=True, slots=True)
class Notice(Event):
    """Something that the user should know."""

    text: str
    component: str = ""
    kind: Literal["notice"] = "notice"


@dataclass(frozen=True, slots=True)
class Retry(Event):
    """A step is tried again, by a cheaper plan or in a new worker; `text` says why and how."""

    component: str
    text: str
    kind: Literal["retry"] = "retry"


Report = Callable[[Event], None]
"""Shows or forwards events."""


def ignore(_event: Event) -> None:
    """A report that shows nothing."""
