"""Constants of this machine: measured, kept, and dropped as soon as they are another's."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lowmem_if.calibrate import clock, compute, disk, measure
from lowmem_if.cli.main import main
from lowmem_if.errors import DeviceError
from lowmem_if.hardware import calibration_file as calibration
from lowmem_if.hardware.calibration_file import (
    MachineKey,
    calibration_bytes,
    calibration_file,
    machine_key,
    read_calibration,
)
from lowmem_if.hardware.machine import probe
from lowmem_if.hardware.speeds import ANY, CPU, Speeds, assumed

HERE = MachineKey("a CPU", 4, 16, "a card", "driver 1", "2.13.0")
MEASURED = replace(assumed("cpu"), disk_bytes=123456.0, origin="measured")


def kept(now: MachineKey = HERE, rates: Speeds = MEASURED, device: str = "cpu") -> Path:
    file = calibration_file(device)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(calibration_bytes(now, rates))
    return file


def test_what_was_measured_is_read_back_equal() -> None:
    """On the same machine constants come back as they were; for another device there are none."""
    kept()
    assert read_calibration("cpu", HERE) == MEASURED
    assert read_calibration("cuda:0", HERE) is None


@pytest.mark.parametrize(
    "change",
    [{"cpu": "another"}, {"threads": 1}, {"ram_gb": 8}, {"accelerator": "another"},
     {"driver": "driver 2"}, {"torch": "2.14.0"}],
)  # fmt: skip
def test_another_machine_driver_or_torch_has_no_calibration(change: dict[str, object]) -> None:
    """Whatever the constants depend on has changed, so they are measured again."""
    kept()
    assert read_calibration("cpu", replace(HERE, **change)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b"[1]", b'{"identity": 1}'])
def test_a_broken_file_is_no_calibration(content: bytes) -> None:
    """It can be made again, so nobody is bothered with it."""
    kept().write_bytes(content)
    assert read_calibration("cpu", HERE) is None


@pytest.mark.parametrize(
    "wrong",
    [{"disk_bytes": 0.0}, {"cached_bytes": -1.0}, {"paces": ()}, {"fill_bytes": float("nan")}],
)
def test_constants_that_nothing_can_be_divided_by_are_none(wrong: dict[str, object]) -> None:
    """A zero, a negative number or no pace at all would crash or turn every plan around."""
    kept(rates=replace(MEASURED, **wrong))  # type: ignore[arg-type]
    assert read_calibration("cpu", HERE) is None


def test_a_machines_identity_reads_its_files(tmp_path: Path) -> None:
    """CPU and driver by what Linux tells; torch by its metadata; nothing where there is nothing."""
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nmodel name\t: Fast 9000\n")
    (tmp_path / "proc/driver/nvidia/version").write_text("NVRM version: 555.42\nGCC: 12\n")
    found = machine_key("a card", tmp_path)
    assert (found.cpu, found.accelerator) == ("Fast 9000", "a card")
    assert "555.42" in found.driver
    assert found.torch.startswith("2.")
    assert machine_key("", tmp_path).driver == ""
    assert machine_key("a card", tmp_path / "nothing").driver == ""


def test_as_many_threads_as_torch_will_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """OMP_NUM_THREADS counts where it is a number."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert machine_key().threads == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert machine_key().threads >= 1


def test_probe_takes_what_was_measured_here() -> None:
    """A calibrated machine plans with its own constants, another with the assumed ones."""
    assert probe("cpu").rates is None
    kept(machine_key())
    assert probe("cpu").rates == MEASURED


def test_reading_a_calibration_imports_no_torch() -> None:
    """Planning stays quick: the versions are read from metadata."""
    code = (
        "import sys; from lowmem_if.hardware.calibration_file import machine_key, read_calibration;"
        "read_calibration('cpu', machine_key());"
        "assert not {'torch', 'diffusers', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Measure with a small file and little time, in a folder of the test's own."""
    monkeypatch.setattr(disk, "_FILE_BYTES", 2**22)
    monkeypatch.setattr(clock, "SHARE_S", 0.01)
    monkeypatch.setattr(compute, "SHARE_S", 0.01)
    least = {"layers_per_block": 1, "block_out_channels": [64, 64, 64, 64]}
    two = {"num_layers": 1, "vocab_size": 64, "d_ff": 64, "d_model": 64, "num_heads": 1}
    monkeypatch.setitem(compute.SHORTENED, "text_encoder", two)
    monkeypatch.setitem(compute.SHORTENED, "stage_1", least)
    monkeypatch.setitem(compute.SHORTENED, "upscaler", least)
    five = {"layers_per_block": 1, "block_out_channels": [64] * 5}
    monkeypatch.setitem(compute.SHORTENED, "stage_2", five)
    monkeypatch.setattr(compute, "_SIDES", {"stage_1": 16, "stage_2": 32, "upscaler": 16})
    monkeypatch.setattr(compute, "_VAE_SIDE", 4)
    weights = tmp_path / "weights"
    weights.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(weights))
    return weights


def test_calibrating_measures_everything_and_leaves_nothing_behind(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`probe --calibrate` prints measured constants, keeps them, and its file is gone."""
    assert main(["probe", "--calibrate", "--device", "cpu", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["rates"]
    assert shown["origin"].startswith("measured here")
    assert list(small.iterdir()) == []
    machine = probe("cpu")
    assert machine.rates is not None
    assert machine.rates.disk_bytes == pytest.approx(shown["disk_bytes"])
    for component in ("text_encoder", "stage_1", "stage_2", "upscaler"):
        assert machine.rates.flops_per_s(CPU, component, machine.compute_dtype) > 0
    assert machine.rates.flops_per_s(CPU, ANY, "float32") > 0


def test_constants_that_cannot_be_kept_are_told(
    small: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A cache folder that is a file ends in one line that says what to set."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOWMEM_IF_CACHE", str(tmp_path / "file"))
    with pytest.raises(DeviceError, match="LOWMEM_IF_CACHE"):
        measure.calibrate(probe("cpu"))


def test_a_killed_writer_leaves_the_old_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is written beside and renamed: whoever reads meanwhile sees the whole old one."""
    file = kept(machine_key())
    before = file.read_bytes()

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", dies)
    with pytest.raises(KeyboardInterrupt):
        measure.keep(probe("cpu"), assumed("cpu"))
    assert file.read_bytes() == before
    assert calibration.read_calibration("cpu", machine_key()) == MEASURED
