"""torch's allocator on a card: its trial, its limit, its caches; with stand-ins for the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import CPU

from lowmem_if.engine.worker import executor
from lowmem_if.planning.estimates.memory import VRAM_WORKSPACE_BYTES
from lowmem_if.weights import allocator, library_differences
from lowmem_if.weights.allocator import SegmentsFail, empty_caches, limit, try_segments

GB = 10**9
EXPANDING = {"PYTORCH_ALLOC_CONF": "backend:native, expandable_segments:True"}


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception | None], list[Any]]:
    """Let `torch.empty` fail with an exception, or not; the devices that were asked for."""

    def set_up(error: Exception | None) -> list[Any]:
        asked: list[Any] = []

        def empty(_size: int, *, dtype: torch.dtype, device: str) -> None:
            asked.append(device)
            if error is not None:
                raise error

        monkeypatch.setattr(torch, "empty", empty)
        return asked

    return set_up


@pytest.mark.parametrize(
    "text",
    [
        "CUDA driver error: unknown error",  # WSL2, pytorch 192330
        "CUDA driver error: out of memory",  # with 50 GB free, unsloth-zoo 1235
        "CUDA error: operation not supported\nCUDA kernel errors might be ...",  # vGPU, unsloth 1446
    ],
)
def test_a_driver_that_refuses_expandable_segments_is_found_out(
    says: Callable[[Exception | None], list[Any]], text: str
) -> None:
    """By one allocation; the first line of what it says is kept."""
    says(RuntimeError(text))
    with pytest.raises(SegmentsFail) as caught:
        try_segments("cuda:0", EXPANDING)
    assert str(caught.value) == text.splitlines()[0]


def test_an_ordinary_shortage_is_not_put_down_to_segments(
    says: Callable[[Exception | None], list[Any]],
) -> None:
    """A full card is a shortage, as it would be without them."""
    says(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 32.00 MiB."))
    with pytest.raises(torch.OutOfMemoryError):
        try_segments("cuda:0", EXPANDING)


@pytest.mark.parametrize(
    ("device", "environment", "tried"),
    [
        ("cuda:1", EXPANDING, ["cuda:1"]),
        ("cuda:0", {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, ["cuda:0"]),
        ("cuda:0", {"PYTORCH_ALLOC_CONF": "expandable_segments:False"}, []),
        ("cuda:0", {}, []),
        ("xpu:0", EXPANDING, []),
        ("mps", EXPANDING, []),
        ("cpu", EXPANDING, []),
    ],
)
def test_only_segments_that_are_set_to_expand_are_tried(
    says: Callable[[Exception | None], list[Any]],
    device: str,
    environment: dict[str, str],
    tried: list[str],
) -> None:
    """Elsewhere the trial would prove nothing."""
    asked = says(None)
    try_segments(device, environment)
    assert asked == tried


def test_a_limit_is_a_share_of_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between nothing and all of it."""
    seen: list[Any] = []
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda *given: seen.append(given)
    )
    for usable in (3 * GB, 5 * GB, -GB):
        limit("cuda:1", usable, 4 * GB)
    assert seen == [(0.75, "cuda:1"), (1.0, "cuda:1"), (0.0, "cuda:1")]


CARD = replace(CPU, device="cuda:0", vram_bytes=4 * GB, vram_total_bytes=5 * GB)


@pytest.mark.parametrize(
    ("spills", "device", "limits"),
    [
        (True, "cuda:0", [("cuda:0", 4 * GB - VRAM_WORKSPACE_BYTES, 5 * GB)]),
        (False, "cuda:0", []),
        (True, "cpu", []),
    ],
)
def test_the_worker_is_limited_where_the_driver_would_lend_ram(
    monkeypatch: pytest.MonkeyPatch, spills: bool, device: str, limits: list[Any]
) -> None:
    """Before its first use of the card, to the budget without the room for workspaces."""
    order: list[Any] = []
    monkeypatch.setattr(executor, "try_segments", lambda device: None)
    monkeypatch.setattr(executor, "limit", lambda *given: order.append(given))
    monkeypatch.setattr(executor, "wake", lambda device, dtype: order.append(dtype))
    machine = replace(CARD, spills_vram=spills)
    run: Any = SimpleNamespace(
        folder=SimpleNamespace(plan=SimpleNamespace(machine=machine)),
        step=SimpleNamespace(config=SimpleNamespace(device=device, compute_dtype="float16")),
    )
    executor._use_device(run)
    assert order == [*limits, "float16"]


@pytest.mark.parametrize(
    ("device", "emptied"),
    [
        ("cuda:0", ["accelerator", "pinned"]),
        ("xpu:0", ["accelerator", "pinned"]),
        ("mps", ["mps"]),
        ("cpu", []),
    ],
)
def test_both_allocators_give_back_what_nobody_uses(
    monkeypatch: pytest.MonkeyPatch, device: str, emptied: list[str]
) -> None:
    """Pinned memory, too, where any is used."""
    seen: list[str] = []
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: seen.append("accelerator"))
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: seen.append("mps"))
    monkeypatch.setattr(allocator, "empty_pinned_cache", lambda _kind: seen.append("pinned"))
    empty_caches(device)
    assert seen == emptied


@pytest.mark.parametrize(
    ("public", "private", "kind", "called"),
    [
        (True, True, "cuda", ["public"]),  # torch 2.12 and later
        (True, False, "xpu", ["public"]),
        (False, True, "cuda", ["private"]),  # 2.10 and 2.11
        (False, False, "xpu", []),
    ],
)
def test_pinned_memory_is_given_back_in_every_version(
    monkeypatch: pytest.MonkeyPatch, public: bool, private: bool, kind: str, called: list[str]
) -> None:
    """By the function that the version has."""
    seen: list[str] = []
    monkeypatch.delattr(torch.accelerator, "empty_host_cache", raising=False)
    monkeypatch.delattr(torch._C, "_host_emptyCache", raising=False)
    if public:
        monkeypatch.setattr(
            torch.accelerator, "empty_host_cache", lambda: seen.append("public"), raising=False
        )
    if private:
        monkeypatch.setattr(
            torch._C, "_host_emptyCache", lambda: seen.append("private"), raising=False
        )
    library_differences.empty_pinned_cache(kind)
    assert seen == called


@pytest.mark.cuda
def test_a_card_gives_pinned_memory_back() -> None:
    """What was pinned and is free is not held any more."""
    torch.cuda.synchronize()
    empty_caches("cuda")
    before = torch.cuda.host_memory_stats()["allocated_bytes.current"]
    buffer = torch.empty(64 * 2**20, dtype=torch.uint8, pin_memory=True)
    del buffer
    assert torch.cuda.host_memory_stats()["allocated_bytes.current"] > before
    empty_caches("cuda")
    assert torch.cuda.host_memory_stats()["allocated_bytes.current"] <= before
