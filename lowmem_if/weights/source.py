"""How weights get from files into networks: what a dry run replaces, and nothing else.

Everything that loads a network takes a `WeightSource`. `FILES` reads real files. The simulator passes
one whose checkpoints read no bytes and which works on the calling thread alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from lowmem_if.weights.files.checkpoint import Checkpoint, weight_files
from lowmem_if.weights.streaming.prefetch import MakePrefetch


@dataclass(frozen=True, slots=True)
class WeightSource:
    """Where a stage's weights come from.

    Attributes:
        open: opens weight files.
        building: a context in which networks are built on the meta device.
        most_threads: how many threads load a network at most; None: as many as read fastest.
        prefetch: on which thread weights are loaded that stream; None: as the device needs it.
    """

    open: Callable[[tuple[Path, ...]], Checkpoint] = Checkpoint
    building: Callable[[], AbstractContextManager[None]] = nullcontext
    most_threads: int | None = None
    prefetch: MakePrefetch | None = None

    def open_folder(self, folder: Path, *, eight_bit: bool = False) -> Checkpoint:
        """The weights that a run loads from a module folder: one variant, all its shards.

        Raises:
            CheckpointError: a file is missing, truncated, or its header makes no sense.
        """
        return self.open(weight_files(folder, eight_bit=eight_bit))


FILES = WeightSource()
"""Real files, read as fast as the machine can."""
