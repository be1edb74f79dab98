"""What a worker reads from its standard input: one command a line, with the lock of its run folder.

The lock is a descriptor, which a socket can pass on. As long as any process may still write, also our
worker after we were killed, no other run gets the folder. A pipe (Windows) cannot pass it on; there
only this process holds the lock.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from lowmem_if.system import channel
from lowmem_if.system.channel import Channel


@dataclass(frozen=True, slots=True)
class Command:
    """Work on the run in `folder`; without a folder: unload all components.

    Attributes:
        directory: that paths are relative to; empty: the worker's own.
        preview_every: steps after which unfinished pictures are written; 0: never.
        keeps: whether components remain loaded afterwards.
        alone: components next to which nothing else may remain loaded.
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
    """The way to one worker. When it closes, or this process dies, the worker exits.

    Attributes:
        far_end: the worker's standard input; to be closed here once the worker has it.
    """

    def __init__(self) -> None:
        self._channel = Channel()
        self.far_end = self._channel.far_end

    def send(self, command: Command, lock: int | None = None) -> None:
        """Send a command; to a worker that has ended nothing is sent, and no answer follows."""
        self._channel.send(command.to_line().encode(), lock)

    def close(self) -> None:
        """Close the channel, which ends the worker."""
        self._channel.close()


def read_commands(descriptor: int) -> Iterator[tuple[Command, int | None]]:
    """The commands that arrive, each with its lock's descriptor, until the sender has gone."""
    for line, lock in channel.received(descriptor):
        yield Command.from_line(line.decode()), lock
