"""A component lives from its loading until it is ended, and its leaving is proved.

Most live exactly as long as one `with`: `alive`. One that stays for several turns rests in between,
while others come and go: what memory it is answerable for is what its own turns have added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

import torch

from lowmem_if.weights.memory_readings import (
    MemoryReading,
    Release,
    Watch,
    prove_release,
    release_memory,
)


class Component(Protocol):
    """What a stage module's class offers: its networks, and how to let go of them."""

    modules: list[torch.nn.Module]

    def close(self) -> None:
        """Remove hooks and drop every reference to the networks."""


C = TypeVar("C", bound=Component)


class Lifetime(Generic[C]):
    """A component that was loaded just now, in the middle of its first turn.

    Turns are between `wake` and `rest`; memory that changes while it rests is not put down to it.
    """

    def __init__(self, load: Callable[[], C], *, device: str, weight_bytes: int) -> None:
        self._device, self._weight_bytes = device, weight_bytes
        self._without = release_memory(device)
        """What is in use when this component has left as it should; known in its turns."""
        self._held: MemoryReading | None = None
        self.component = load()
        self._watch = Watch(self.component.modules)

    def rest(self) -> None:
        """Its turn is over: give back what only working took."""
        self._held = release_memory(self._device) - self._without

    def wake(self) -> None:
        """Begin another turn."""
        if self._held is not None:
            self._without = release_memory(self._device) - self._held
            self._held = None

    def close(self) -> None:
        """Free it, without a proof: an exception's traceback holds the frames that hold the tensors."""
        self.component.close()

    def end(self) -> Release:
        """Free it, and tell what is left of it."""
        self.wake()
        self.close()
        return prove_release(
            self._watch, self._without, release_memory(self._device), self._weight_bytes
        )


@contextmanager
def alive(
    load: Callable[[], C], *, device: str, weight_bytes: int, on_release: Callable[[Release], None]
) -> Iterator[C]:
    """Load a component, lend it, free it, and report on what is left of it."""
    life = Lifetime(load, device=device, weight_bytes=weight_bytes)
    try:
        yield life.component
    except BaseException:
        life.close()
        raise
    on_release(life.end())
