"""8-bit and 4-bit weights need bitsandbytes, and nothing else does."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from runs import CPU, plan_of

from lowmem_if.cascade.strategies import BALANCED, QUANTISED, parse_pins
from lowmem_if.errors import MissingPackage
from lowmem_if.hardware.machine import Machine
from lowmem_if.hardware.profiles import load_profile
from lowmem_if.planning.plan import Plan, make_plan
from lowmem_if.request.build import make_request
from lowmem_if.weights import loading

COMMAND = r"pip install --no-deps bitsandbytes"


def without(machine: Machine) -> Machine:
    return replace(machine, has_bitsandbytes=False)


def real_plan(machine: Machine, *pins: str, prefer: str = BALANCED) -> Plan:
    request = make_request(("a fox",), cascade="if-xl", seed=(1,))
    return make_plan(machine, request, prefer=prefer, pins=parse_pins(pins))


@pytest.mark.parametrize("pin", ["resident:int8", "resident:nf4"])
def test_a_pin_that_needs_it_names_the_command(pin: str) -> None:
    """Quantised weights that were asked for are refused with the command that brings the package."""
    with pytest.raises(MissingPackage, match=COMMAND):
        real_plan(without(CPU), f"text_encoder={pin}")


@pytest.mark.parametrize("profile", ["colab-free", "rtx-3060-12gb", "laptop-cpu-16gb"])
def test_without_it_nothing_is_planned_in_few_bits(profile: str) -> None:
    """The planner takes another way for the text encoder, and on a GPU says what is missing."""
    machine = without(load_profile(profile).machine)
    encoder = real_plan(machine).step("text_encoder")
    assert encoder.config.storage_dtype not in QUANTISED
    assert (COMMAND in encoder.reason) == (machine.kind != "cpu")


def test_with_it_colab_gets_the_8_bit_encoder_and_no_remark() -> None:
    """Where the package is there, the plan says nothing of it."""
    encoder = real_plan(load_profile("colab-free").machine).step("text_encoder")
    assert encoder.config.storage_dtype == "int8"
    assert "bitsandbytes" not in encoder.reason


def test_a_plan_from_elsewhere_is_refused_before_anything_is_read(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan made where the package was, run where it is not, ends with the command."""
    monkeypatch.setattr(loading, "bitsandbytes_is_installed", lambda: False)
    with pytest.raises(MissingPackage, match=COMMAND):
        loading.load_text_encoder(tiny / "stage_1", storage="int8", compute="float32", device="cpu")


@pytest.mark.slow
def test_a_float_run_imports_none_of_it(tiny: Path, tmp_path: Path) -> None:
    """A run without quantised weights works where importing bitsandbytes fails."""
    plan = plan_of(tiny, size=64)
    script = (
        "import json, sys; sys.modules['bitsandbytes'] = None\n"
        "from pathlib import Path\n"
        "from lowmem_if.planning.plan import Plan\n"
        "from lowmem_if.engine.run_folder.folder import RunFolder\n"
        "from lowmem_if.engine.worker.executor import work\n"
        "plan = Plan.from_json(json.loads(sys.stdin.read()))\n"
        "work(RunFolder.for_plan(Path(sys.argv[1]), plan), print)\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run")],
        input=json.dumps(plan.to_json()),
        text=True,
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "run" / "0000.png").is_file()
