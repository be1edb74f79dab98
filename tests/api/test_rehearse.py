"""A rehearsal on the tiny cascade: what it runs, measures, leaves behind and tells."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lowmem_if.api import rehearse as rehearsal
from lowmem_if.api.rehearse import rehearse
from lowmem_if.cascade import catalog
from lowmem_if.cascade.strategies import parse_pins
from lowmem_if.cli.main import main
from lowmem_if.errors import CascadeError, DoesNotFit
from lowmem_if.hardware.machine import Machine, probe
from lowmem_if.planning.plan import make_plan
from lowmem_if.request.build import make_request


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where weights are kept, empty."""
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


@pytest.mark.worker
def test_a_rehearsal_measures_every_component_and_its_constants_serve_later_plans(
    tiny: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every step has peaks and times, nothing is left on the disk, and probe has measured constants."""
    arguments = [
        "rehearse",
        str(tiny),
        "--device",
        "cpu",
        "--ram",
        "4GB",
        "--steps",
        "3",
        "--quiet",
    ]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert f"{tiny} at 1024 px: " in shown
    assert "an image, peak RAM " in shown
    assert list(weights.iterdir()) == []
    machine = probe("cpu")
    assert machine.rates is not None
    assert machine.rates.origin.startswith("rehearsed here")
    measured = {pace.component for pace in machine.rates.paces}
    assert {"stage_1", "stage_2", "upscaler", "vae"} <= measured


@pytest.mark.worker
def test_the_real_plan_is_rehearsed_with_few_steps(tiny: Path, weights: Path) -> None:
    """Pins and preferences are those of the real thing; the prediction is of all its steps."""
    machine = replace(probe("cpu"), ram_bytes=4 * 10**9)
    request = make_request(("a", "b"), cascade=str(tiny), seed=(1, 2), size=64, steps=(40,))
    pins = parse_pins(["stage_1=stream"])
    result = rehearse(request, machine, pins=pins, steps=2)
    steps = {each.step.component: each.step for each in result.components}
    assert steps["stage_1"].config.strategy == "stream"
    assert steps["stage_1"].sampling is not None
    assert steps["stage_1"].sampling.count == 2
    planned = result.plan.step("stage_1")
    assert planned.sampling is not None
    assert planned.sampling.count == 40
    assert len(result.plan.request.images) == 2
    for each in result.components:
        assert each.ram_bytes > 10**8
        assert each.load_s >= 0
    assert result.ram_bytes == max(each.ram_bytes for each in result.components)
    assert list(weights.iterdir()) == []


@pytest.mark.worker
def test_a_part_of_the_users_own_is_rehearsed_with_its_weights(tiny: Path, weights: Path) -> None:
    """The plan for the real run keeps the part, and so does the rehearsal."""
    machine = replace(probe("cpu"), ram_bytes=4 * 10**9)
    parts = {"stage_1": tiny / "stage_1" / "unet"}
    request = make_request(("a",), cascade=str(tiny), parts=parts, seed=(1,), size=64)
    result = rehearse(request, machine, steps=2)
    assert result.plan.request == request
    assert [each.step.component for each in result.components] == [
        catalog.TEXT_ENCODER, catalog.STAGE_1, catalog.POSTPROCESS,
    ]  # fmt: skip


def test_a_part_that_is_not_here_cannot_be_rehearsed(
    weights: Path, nothing_downloaded: Path
) -> None:
    """Made-up weights have published sizes, and the user asked for their own."""
    machine = replace(probe("cpu"), ram_bytes=16 * 10**9)
    request = make_request(("a",), cascade="if-m", parts={"stage_1": "I-L"}, seed=(1,), size=64)
    with pytest.raises(
        CascadeError, match="needs its weights: `lowmem-if fetch if-m --part stage_1="
    ):
        rehearse(request, machine)
    assert list(weights.iterdir()) == []


def test_what_does_not_fit_is_told_before_anything_is_written(weights: Path) -> None:
    """The plan comes first: no file is made for a machine that the cascade does not fit."""
    machine = replace(probe("cpu"), ram_bytes=10**8)
    with pytest.raises(DoesNotFit):
        rehearse(make_request(("a",), cascade="if-m", seed=(1,)), machine)
    assert list(weights.iterdir()) == []


def test_a_disk_without_room_is_told(
    weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Made-up weights of the real size need its room; the error comes before the first byte."""
    monkeypatch.setattr("lowmem_if.weights.synthetic.checkpoints.free_bytes", lambda _folder: 10**9)
    machine = replace(probe("cpu"), ram_bytes=16 * 10**9)
    with pytest.raises(CascadeError, match="free"):
        rehearse(make_request(("a",), cascade="if-m", seed=(1,), size=64), machine)
    assert list(weights.iterdir()) == []


@pytest.mark.worker
def test_json_holds_the_plan_and_what_was_measured(
    tiny: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`rehearse --json` prints one object."""
    arguments = ["rehearse", str(tiny), "--device", "cpu", "--ram", "4GB", "--size", "64", "--json"]
    assert main([*arguments, "--quiet"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {"plan", "components"} == shown.keys()
    assert [each["step"]["component"] for each in shown["components"]] == [
        catalog.TEXT_ENCODER, catalog.STAGE_1, catalog.POSTPROCESS,
    ]  # fmt: skip


def test_streaming_to_an_accelerator_says_nothing_of_its_pace(tiny: Path) -> None:
    """There the slower of computing and travelling is seen, and which it was is not known."""
    machine: Machine = replace(probe("cpu"), ram_bytes=4 * 10**9)
    request = make_request(("a",), cascade=str(tiny), seed=(1,), size=64)
    plan = make_plan(machine, request, pins=parse_pins(["stage_1=stream"]))
    step = plan.step("stage_1").with_config(device="cuda:0")
    part = request.locate().cascade.parts["stage_1"]
    seen = rehearsal.Rehearsed(step, 0, 0, 1.0, 1.0, 1.0)
    assert list(rehearsal._paces(seen, part, machine.speeds)) == []


def test_peaks_of_reserved_memory_are_those_of_the_components_own_turn(tmp_path: Path) -> None:
    """Samples of other turns do not count."""
    samples = [
        {"step": "stage_1", "vram_reserved": 5},
        {"step": "stage_2", "vram_reserved": 9},
        {"step": "stage_1", "vram_reserved": 7},
    ]
    file = tmp_path / "memory.jsonl"
    file.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    run: Any = SimpleNamespace(memory_file=file)
    assert rehearsal._peak(run, "stage_1", "vram_reserved") == 7
    assert rehearsal._peak(run, "postprocess", "vram_reserved") == 0
