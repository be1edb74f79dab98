"""What a worker is told through its standard input: an order a line, with the lock of its run folder.

The lock is a descriptor, which a socket can pass on: as long as anybody may still write, our worker too
if we are killed, nobody else gets the folder. A pipe (Windows) cannot; there the lock is ours alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from lowmem_if.system import channel
from lowmem_if.system.channel import Channel


@dataclass(frozen=True, slots=True)
class Command:
    """Work on the run in `folder`, or without one: let go of all that stays loaded.

    Attributes:
        directory: that paths are relative to; empty: where the worker is.
        preview_every: steps after which pictures in the making are written; 0: never.
        keeps: whether components stay loaded afterwards.
        alone: components that nothing else may stay loaded beside.
    """

    folder: str = ""
    directory: str = ""
    preview_every: int = 0
    keeps: bool = False
    alone: tuple[str, ...] = ()

    def to_line(self) -> str:
        return json.dumps(asdict(self)) + "\n"

    @staticmethod
    def from_line(line: str) -> Command:
        content = json.loads(line)
        return Command(**content | {"alone": tuple(content["alone"])})


class CommandChannel:
    """The way to one worker. When it closes, or this process dies, the worker leaves.

    Attributes:
        far_end: the worker's standard input; to be closed here once the worker has it.
    """

    def __init__(self) -> None:
        self._channel = Channel()
        self.far_end = self._channel.far_end

    def give(self, order: Command, lock: int | None = None) -> None:
        """Tell the worker what to do; one that is gone hears nothing, and its silence is the answer."""
        self._channel.send(order.to_line().encode(), lock)

    def close(self) -> None:
        """Send the worker away."""
        self._channel.close()


def received(descriptor: int) -> Iterator[tuple[Command, int | None]]:
    """The orders that come in, each with its lock's descriptor, until whoever gives them is gone."""
    for line, lock in channel.received(descriptor):
        yield Command.from_line(line.decode()), lock
