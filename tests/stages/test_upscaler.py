"""Between the upscaler's last step and its decoder the accelerator's cache is emptied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers import AutoencoderKL
from runs import plan_of, run_here

from lowmem_if.cascade.catalog import UPSCALER
from lowmem_if.engine.events import Event


def test_the_cache_is_emptied_once_before_decoding(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the UNet's last step: what it took is of no use to the decoder."""
    order: list[str] = []
    decode = AutoencoderKL.decode

    def watched(self: Any, *args: Any, **more: Any) -> Any:
        order.append("decode")
        return decode(self, *args, **more)

    def report(event: Event) -> None:
        if (event.kind, event.component) == ("drawing", UPSCALER):
            order.append(f"step {event.done}")

    monkeypatch.setattr(AutoencoderKL, "decode", watched)
    monkeypatch.setattr(
        "lowmem_if.stages.upscaler.empty_cache", lambda device: order.append(f"empty {device}")
    )
    run_here(plan_of(tiny), tmp_path / "run", report)
    assert order == ["step 1", "empty cpu", "step 2", "decode"]
