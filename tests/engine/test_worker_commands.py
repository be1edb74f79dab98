"""Orders arrive whole, with the lock of the run folder, until nobody gives any more."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from runs import plan_of

from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.worker_commands import Command, CommandChannel, read_commands
from lowmem_if.errors import RunFolderError


def test_an_order_comes_with_the_lock_which_holds_until_both_have_let_go(tmp_path: Path) -> None:
    """The folder is in use while the descriptor that was passed on is open, and free after that."""
    folder = RunFolder.for_plan(tmp_path / "run", plan_of("demo", size=64))
    line = CommandChannel()
    sent = Command("runs/a", "/somewhere", 3, True, ("stage_2",))
    with folder.locked() as lock:
        line.send(sent, lock)
    order, passed = next(read_commands(line.far_end))
    assert order == sent
    assert passed is not None
    with pytest.raises(RunFolderError, match="in use"), folder.locked():
        pass
    os.close(passed)
    with folder.locked():
        pass
    line.close()
    os.close(line.far_end)


def test_orders_end_when_their_giver_is_gone() -> None:
    """What was given before is still heard, then no more."""
    line = CommandChannel()
    line.send(Command())
    orders = read_commands(line.far_end)
    assert next(orders) == (Command(), None)
    line.close()
    assert list(orders) == []
    os.close(line.far_end)


def test_who_is_gone_is_told_nothing() -> None:
    """An order to a worker that has died is no error: its silence tells."""
    line = CommandChannel()
    os.close(line.far_end)
    line.send(Command("x" * 100))
    line.close()


def test_a_pipe_brings_orders_without_locks(tmp_path: Path) -> None:
    """As on Windows: one order a line."""
    file = tmp_path / "orders"
    file.write_text(Command("a").to_line() + Command("b").to_line())
    with file.open() as lines:
        assert [order.folder for order, lock in read_commands(lines.fileno()) if lock is None] == [
            "a",
            "b",
        ]
