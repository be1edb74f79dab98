"""`plan --simulate`: what the shipped table lacks is run dry, and the plan says what that found."""

from __future__ import annotations

import pytest

from lowmem_if.cascade.catalog import STAGE_1
from lowmem_if.hardware.profiles import load_profile
from lowmem_if.planning.estimates import memory
from lowmem_if.planning.plan import make_plan
from lowmem_if.request.build import make_request
from lowmem_if.simulate.simulated_plan import simulated_plan


@pytest.mark.slow
def test_a_local_cascade_is_simulated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan's figures are the dry run's then; what was simulated is not simulated again."""
    monkeypatch.setattr(memory, "_REMEMBERED", {})
    machine = load_profile("rtx-3060-12gb").machine
    request = make_request(("a red circle",), cascade="demo", size=64, seed=(1,))
    before = make_plan(machine, request).step(STAGE_1)
    said: list[str] = []
    plan = simulated_plan(machine, request, report=said.append)
    assert [line.split(":")[0] for line in said] == [
        "simulating text encoder",
        "simulating stage 1",
    ]
    after = plan.step(STAGE_1)
    assert after.config == before.config
    assert after.estimate.vram_bytes != before.estimate.vram_bytes
    assert 0.8 < after.estimate.vram_bytes / before.estimate.vram_bytes < 1.25
    said.clear()
    assert simulated_plan(machine, request, report=said.append) == plan
    assert said == []


def test_the_cpu_is_not_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its figures are measured ones: heap and oneDNN take more than tensors do."""
    monkeypatch.setattr(memory, "_REMEMBERED", {})
    machine = load_profile("laptop-cpu-16gb").machine
    request = make_request(("a red circle",), cascade="demo", size=64, seed=(1,))
    said: list[str] = []
    assert simulated_plan(machine, request, report=said.append) == make_plan(machine, request)
    assert said == []
