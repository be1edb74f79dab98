"""The worker's environment, and how its end is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from other_systems import On, linux
from runs import plan_of

from lowmem_if.api.run import run
from lowmem_if.engine import worker_process
from lowmem_if.engine.worker import environment
from lowmem_if.engine.worker.environment import worker_environment
from lowmem_if.system import exit_codes


def test_the_users_own_allocator_settings_win(tmp_path: Path) -> None:
    """By the new name or the old one."""
    root = linux(tmp_path)
    own = worker_environment({"PYTORCH_ALLOC_CONF": "backend:native"}, root=root)
    assert own["PYTORCH_ALLOC_CONF"] == "backend:native"
    older = worker_environment({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, root=root)
    assert "PYTORCH_ALLOC_CONF" not in older


def test_threads_do_not_spin_next_to_a_busy_process() -> None:
    """Whichever OpenMP runtime torch was shipped with; the user's own settings win."""
    assert worker_environment({})["GOMP_SPINCOUNT"] == "1000"
    assert worker_environment({})["KMP_BLOCKTIME"] == "0"
    own = worker_environment({"GOMP_SPINCOUNT": "5", "KMP_BLOCKTIME": "200"})
    assert (own["GOMP_SPINCOUNT"], own["KMP_BLOCKTIME"]) == ("5", "200")


def test_what_metal_lacks_is_computed_on_the_cpu(on: On, monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS alone, unless the user has decided."""
    assert "PYTORCH_ENABLE_MPS_FALLBACK" not in worker_environment({})
    on("darwin", environment)
    assert worker_environment({})["PYTORCH_ENABLE_MPS_FALLBACK"] == "1"
    own = {"PYTORCH_ENABLE_MPS_FALLBACK": "0"}
    assert worker_environment(own)["PYTORCH_ENABLE_MPS_FALLBACK"] == "0"


def test_a_worker_that_windows_ended_is_told_in_hex(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a known error with what to do, no bug of ours."""
    monkeypatch.setattr(worker_process, "ending", lambda code: exit_codes.ending(0xC0000005))
    monkeypatch.setattr(worker_process, "WORKER", ("-c", "raise SystemExit(1)"))
    with pytest.raises(worker_process.WorkerDied, match=r"0xC0000005 .access violation.*resume"):
        run(plan_of(tiny, size=64), tmp_path / "run")
