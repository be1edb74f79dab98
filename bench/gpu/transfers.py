"""The staging buffers' bytes a second, and how much of streaming is hidden behind computing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.case import measure as measure_case
from bench.cases import Case
from bench.gpu.rows import COUNT, RATE, SECONDS, Row, figure, row
from bench.gpu.setup import Setup, real_cascade, tiny_cascade
from lowmem_if.engine.worker.command_loop import quiet_libraries
from lowmem_if.hardware.machine import probe
from lowmem_if.weights.files.checkpoint import Checkpoint
from lowmem_if.weights.files.staging import Staging
from lowmem_if.weights.files.tensor_reader import Reader
from lowmem_if.weights.synthetic.checkpoints import NOISE, synthesize

_MOST_BYTES, _MOST_S = 4e9, 5.0
"""Of weights that are sent to measure the staging buffers, and seconds for it."""


def rows(setup: Setup) -> Iterator[Row]:
    """Real weights, sent through the staging buffers, then streamed while a UNet computes."""
    quiet_libraries()
    speeds = probe(setup.device).speeds
    cascade = real_cascade(setup)
    bus = speeds.cached_bytes
    if setup.on_card:
        bus = _staging_bytes_per_s(cascade / "stage_1" / "unet", setup.device)
        sent = figure("to the card", bus, speeds.bus_bytes, RATE)
        yield row("staging buffers", sent, constants={"staging_bytes_per_s": bus})
    yield from _streamed(setup, cascade, "real size", bus)
    yield from _streamed(setup, _noise(setup), "made-up numbers", bus)


def _staging_bytes_per_s(folder: Path, device: str) -> float:
    """Bytes a second from files in the system's cache to a card, through the staging buffers."""
    with Checkpoint.of_folder(folder) as checkpoint:
        staging, sent, begun = Staging(Reader(checkpoint), device), 0, 0.0
        for name in checkpoint:
            stored = checkpoint.stored(name)
            target = torch.empty(stored.shape, dtype=stored.dtype, device=device)
            if not begun:  # the first one pays for what is done once
                staging.read(stored, target)
                begun = time.perf_counter()
                continue
            staging.read(stored, target)
            sent += stored.size_bytes
            if sent > _MOST_BYTES or time.perf_counter() - begun > _MOST_S:
                break
        return sent / (time.perf_counter() - begun)


def _noise(setup: Setup) -> Path:
    """if-m's stage 1 with weights of noise, so that equal bits mean something."""
    if setup.quick:
        return tiny_cascade(setup)
    folder = setup.out / "weights" / "if-m"
    synthesize("if-m", folder, fill=NOISE, components=("stage_1",))
    return folder


def _streamed(setup: Setup, cascade: Path, name: str, bus: float) -> Iterator[Row]:
    """A stage 1 UNet in memory, then from its files."""
    scratch = setup.out / "scratch"
    scratch.mkdir(exist_ok=True)
    case = Case("if-xl", "stage_1", "resident", cascade, scratch, steps=3, device=setup.device,
                dtype=setup.dtype)  # fmt: skip
    resident = measure_case(case)
    streamed = measure_case(replace(case, way="streamed-0"))
    for kind, record in (("resident", resident), ("streamed", streamed)):
        if "failed" in record:
            yield row(f"{name}, {kind}", ok=False, text=record["failed"]["text"])
            return
    yield _compared(name, resident, streamed, bus)


def _compared(name: str, resident: dict[str, Any], streamed: dict[str, Any], bus: float) -> Row:
    """Step times and bits of both; `bus`: bytes a second that weights can come at."""
    stays, comes = (_step_s(record) for record in (resident, streamed))
    bringing = streamed["weight_bytes"] / bus
    hidden = hidden_share(stays, bringing, comes)
    same = resident["output"]["hash"] == streamed["output"]["hash"]
    return row(
        f"stage 1, {name}",
        figure("a step, resident", stays, unit=SECONDS),
        figure("a step, streamed", comes, max(stays, bringing), SECONDS),
        figure("bringing the weights alone", bringing, unit=SECONDS),
        figure("share of the shorter one that is hidden", hidden, 1.0, COUNT),
        figure("VRAM, streamed", streamed["steps"]["vram"]),
        ok=same,
        text="same bits" if same else "streamed and resident outputs differ",
        constants={"hidden_share": {name: hidden}},
    )


def _step_s(record: dict[str, Any]) -> float:
    """The quickest step but the first."""
    return float(min(record["steps"]["seconds"][1:]))


def hidden_share(computing_s: float, bringing_s: float, both_s: float) -> float:
    """How much of the shorter of two activities ran beside the longer one: 0 none, 1 all of it."""
    saved = computing_s + bringing_s - both_s
    return max(0.0, min(1.0, saved / min(computing_s, bringing_s)))
