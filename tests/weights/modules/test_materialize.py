"""Filling modules with weights: how many threads do it."""

from __future__ import annotations

import threading
from typing import Any

from lowmem_if.weights.modules import materialize


def test_one_loader_is_the_calling_thread() -> None:
    """An Apple GPU is filled by the thread that computes on it."""
    used: list[threading.Thread] = []
    slots: Any = [1, 2]
    materialize.in_parallel(lambda slot: used.append(threading.current_thread()), slots, 1)
    assert used == [threading.main_thread()] * 2
