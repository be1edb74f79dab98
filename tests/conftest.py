"""What every test gets: no network, no home folder, caches of its own, and a tiny cascade."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

# Before anything imports huggingface_hub, which reads these once. The test processes of xdist share the
# folder of the process that starts them: with another one the fork server could not serve them.
_SHARED = "PYTEST_XDIST_WORKER" in os.environ
_HOME = Path(os.environ["HF_HOME"] if _SHARED else tempfile.mkdtemp(prefix="lowmem-if-tests-"))
os.environ |= {"HF_HOME": str(_HOME), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

import forked_workers  # noqa: E402
import pytest  # noqa: E402
from other_systems import On  # noqa: E402

from lowmem_if.cascade import locate as locations  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    """Before the test processes start: what they share."""
    forked_workers.begin_session(config)


def pytest_unconfigure() -> None:
    """End what `pytest_configure` or a test has started."""
    forked_workers.end_server()
    if not _SHARED:
        shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _like_a_worker() -> None:
    import lowmem_if.engine.worker.command_loop  # noqa: F401  the heavy imports, once

    gc.freeze()  # as the worker does, and for the same reason
    forked_workers.install()


@pytest.fixture(autouse=True)
def _own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test writes to its own cache and stands in its own folder."""
    monkeypatch.setenv("LOWMEM_IF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LOWMEM_IF_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture: may this test start worker processes?"""
    forked_workers.begin_test(item)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs count as tests with a worker; tests for an accelerator run wherever there is one."""
    import torch

    for item in items:
        if "whole_runs" in item.path.parts and not item.get_closest_marker("worker"):
            item.add_marker(pytest.mark.worker)

    if not torch.cuda.is_available():
        reason = f"torch {torch.__version__} sees no NVIDIA accelerator here"
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny cascade of IF's classes with random weights; 32, 64 and 256 pixels."""
    from tiny_cascade import make_tiny_cascade  # imports diffusers, which not every process needs

    return make_tiny_cascade(tmp_path_factory.mktemp("tiny") / "cascade", sides=(32, 64))


@pytest.fixture
def nothing_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, tiny: Path
) -> Path:
    """An empty Hugging Face cache, and the tiny cascade as the bundled one."""
    cache = tmp_path_factory.getbasetemp() / "empty hub cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(locations, "DEMO_FOLDER", tiny)
    return cache


@pytest.fixture
def starts(tmp_path: Path) -> Path:
    """A file that holds one byte for each worker that was started."""
    return tmp_path / "starts"


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> On:
    """Let one module take the way of another system."""

    def pretend(platform: str, module: ModuleType) -> None:
        monkeypatch.setattr(module, "sys", SimpleNamespace(platform=platform))

    return pretend
