"""A component is in memory from its loading to its release, and its release is proved.

Most are in memory for exactly one `with`: `alive`. A cached one rests between its steps, while others
are loaded and released. It is responsible only for the memory that its own steps have added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Generic, Protocol, TypeVar

import torch

from lowmem_if.weights.memory_readings import (
    MemoryReading,
    Release,
    Watch,
    prove_release,
    release_memory,
)


class Releasable(Protocol):
    """What has a lifetime: a `Stage`, or the networks of one.

    Attributes:
        modules: the networks, whose release is proved.
    """

    modules: list[torch.nn.Module]

    def close(self) -> None:
        """Remove all hooks and drop every reference to the networks."""


C = TypeVar("C", bound=Releasable)


class Lifetime(Generic[C]):
    """A component that was just loaded, in its first step.

    Its steps are between `wake` and `rest`. Memory that changes while it rests is not counted as its
    own.
    """

    def __init__(self, load: Callable[[], C], *, device: str, weight_bytes: int) -> None:
        self._device, self._weight_bytes = device, weight_bytes
        self._without = release_memory(device)
        """The memory in use once this component is released completely; known during its steps."""
        self._held: MemoryReading | None = None
        self.component = load()
        self._watch = Watch(self.component.modules)

    def rest(self) -> None:
        """Its step is done: release what only computing needed."""
        self._held = release_memory(self._device) - self._without

    def wake(self) -> None:
        """Begin another step."""
        if self._held is not None:
            self._without = release_memory(self._device) - self._held
            self._held = None

    def close(self) -> None:
        """Release it without a proof, after an error: the traceback's frames hold tensors."""
        self.component.close()

    def end(self) -> Release:
        """Release the component, and report how much of its memory is still in use."""
        self.wake()
        self.close()
        return prove_release(
            self._watch, self._without, release_memory(self._device), self._weight_bytes
        )


@contextmanager
def closed_on_error(life: Lifetime[Any]) -> Iterator[None]:
    """Free a component if its step ends in an error; nothing is measured then."""
    with ExitStack() as undo:
        undo.callback(life.close)
        yield
        undo.pop_all()


@contextmanager
def alive(
    load: Callable[[], C], *, device: str, weight_bytes: int, on_release: Callable[[Release], None]
) -> Iterator[C]:
    """Load a component, yield it, release it, and report how much of its memory is still in use."""
    life = Lifetime(load, device=device, weight_bytes=weight_bytes)
    with closed_on_error(life):
        yield life.component
    on_release(life.end())
