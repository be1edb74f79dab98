"""Workers with a fault in them, in place of the true one."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowmem_if.engine import worker_process

FAULTY = Path(__file__).with_name("faulty_worker.py")


def inject(monkeypatch: pytest.MonkeyPatch, fault: str, starts: Path) -> None:
    """Give every worker that this test starts a fault of `faulty_worker.py`; `starts` counts them."""
    monkeypatch.setattr(worker_process, "WORKER", (str(FAULTY), fault, str(starts)))
