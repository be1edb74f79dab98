"""A component lives exactly as long as one `with`, and its leaving is proved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch

from lowmem_if.weights.memory import Release, Watch, prove_release, release_memory


class Component(Protocol):
    """What a stage module's class offers: its networks, and how to let go of them."""

    modules: list[torch.nn.Module]

    def close(self) -> None:
        """Remove hooks and drop every reference to the networks."""


C = TypeVar("C", bound=Component)


@contextmanager
def alive(
    load: Callable[[], C], *, device: str, weight_bytes: int, on_release: Callable[[Release], None]
) -> Iterator[C]:
    """Load a component, lend it, free it, and report on what is left of it.

    After an exception nothing is proved: its traceback holds the frames that hold the tensors.
    """
    before = release_memory(device)
    component = load()
    watch = Watch(component.modules)
    try:
        yield component
    finally:
        component.close()
    on_release(prove_release(watch, before, release_memory(device), weight_bytes))
