"""Which offload group is loaded next, and which are unloaded for it: decisions only, without threads.

A group goes through these states:

    absent --wanted() or upcoming()--> reserved --loaded()--> loaded --enter()--> in use
      ^                                                         |                  |
      +----------------- evicted for another group -------------+---- leave() -----+

The order of the groups is the order in which they last followed one another. It begins as the order in
which they are registered, and every pass corrects it. That the first group follows the last one is known
from the second pass on, so a pass that is the only one loads nothing twice.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Protocol

from lowmem_if.weights.streaming.offload_groups import OffloadGroup


class Memory(Protocol):
    """Where loaded groups are kept; a `Transport` is one."""

    def reserve(self, group: OffloadGroup, *, force: bool = False) -> bool:
        """Reserve memory for a group; returns whether there was any. With `force` there always is."""

    def release(self, group: OffloadGroup) -> None:
        """Free the memory of a group."""


class Schedule:
    """The states of all groups. The caller makes sure that only one thread uses it at a time."""

    def __init__(self, groups: Sequence[OffloadGroup], memory: Memory) -> None:
        self._memory = memory
        self._follower = dict(pairwise([None, *groups]))
        self._current: OffloadGroup | None = None
        self._requested: OffloadGroup | None = None
        self._loaded: set[OffloadGroup] = set()
        self._users: dict[OffloadGroup, int] = {}

    def reach(self, group: OffloadGroup) -> bool:
        """Computing has reached a group; returns whether it is not in use yet."""
        if self._current is not group:
            self._follower[self._current] = group
        self._current = group
        return not self._users.get(group)

    def end_with(self, group: OffloadGroup) -> None:
        """The pass that computes now is the last one, and ends with `group`: none is loaded after it."""
        self._follower.pop(group, None)

    def request(self, group: OffloadGroup | None) -> None:
        """Computing waits for this group; None: for none any more."""
        self._requested = group

    def enter(self, group: OffloadGroup) -> None:
        """One more forward uses the group."""
        self._users[group] = self._users.get(group, 0) + 1

    def leave(self, group: OffloadGroup) -> bool:
        """One forward less uses the group; returns whether it was the last, so that `release` is due."""
        if not self._users.get(group):
            return False  # loading it failed
        self._users[group] -= 1
        return not self._users[group]

    def release(self, group: OffloadGroup) -> None:
        """Unload a group."""
        self._loaded.discard(group)
        self._memory.release(group)

    def loaded(self, group: OffloadGroup) -> None:
        """The weights of a group that was reserved are in memory now."""
        self._loaded.add(group)

    def is_loaded(self, group: OffloadGroup) -> bool:
        return group in self._loaded

    def wanted(self) -> OffloadGroup | None:
        """The group that computing waits for, with memory reserved; idle groups are evicted for it."""
        group = self._requested
        if group is None or group in self._loaded:
            return None
        if not self._memory.reserve(group):
            self._evict_idle(self._loaded)
            self._memory.reserve(group, force=True)
        return group

    def upcoming(self) -> OffloadGroup | None:
        """The next group that is not loaded, with memory reserved; None if there is no memory for it.

        Loaded groups that are not between computing and this group are evicted for it.
        """
        ahead: list[OffloadGroup] = []
        group = self._follower.get(self._current)
        while group in self._loaded and group is not self._current and group not in ahead:
            ahead.append(group)
            group = self._follower.get(group)
        if group is None or group in self._loaded:
            return None
        if self._memory.reserve(group):
            return group
        strays = self._loaded.difference(ahead, [self._current])
        return group if self._evict_idle(strays) and self._memory.reserve(group) else None

    def _evict_idle(self, groups: Collection[OffloadGroup]) -> bool:
        """Evict those that are not in use; returns whether there were any."""
        idle = [group for group in groups if not self._users.get(group)]
        for group in idle:
            self.release(group)
        return bool(idle)
