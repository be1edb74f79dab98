"""What a refusal says: true figures, and requests that really fit."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from machines import (
    GB,
    ask,
    card,
    cpu,
    machines,
    pins,
    preferences,
    refusal,
    requests,
    thorough,
    try_plan,
)
from PIL import Image

from lowmem_if.cascade import catalog
from lowmem_if.cascade import locate as locations
from lowmem_if.cascade.catalog import STAGE_1, TEXT_ENCODER, UPSCALER
from lowmem_if.cascade.strategies import (
    PREFERENCES,
    SEQUENTIAL_OFFLOAD,
    Pin,
)
from lowmem_if.errors import (
    DeviceError,
    DoesNotFit,
    RequestError,
)
from lowmem_if.hardware.machine import Machine
from lowmem_if.planning.plan import make_plan
from lowmem_if.request.build import make_request
from lowmem_if.request.request import Request

pytestmark = pytest.mark.usefixtures("nothing_downloaded")


@thorough
@given(machines, requests, preferences)
def test_a_refusal_carries_true_figures(
    machine: Machine, request: Request, prefer: str | None
) -> None:
    """Granting what each refusal says is needed leads, step by step, to a plan."""
    for _ in range(12):
        error = refusal(machine, request, prefer=prefer)
        if error is None:
            return
        assert error.component in request.components
        assert error.needed_bytes > error.available_bytes >= 0
        words = (f"{error.needed_bytes / GB:.1f} GB", f"{error.available_bytes / GB:.1f} GB")
        assert all(word in str(error) for word in (*words, error.resource, error.nearest))
        assert "\n" not in str(error)
        if error.resource == "VRAM":
            assert error.available_bytes == machine.vram_bytes
            machine = replace(machine, vram_bytes=error.needed_bytes)
        else:
            assert error.available_bytes == machine.ram_bytes
            machine = replace(machine, ram_bytes=error.needed_bytes)
    pytest.fail("the refusals ask for more and more")


def take(
    nearest: str, request: Request, prefer: str | None, pins: Mapping[str, Pin]
) -> tuple[Request, str | None, Mapping[str, Pin]]:
    """The request, changed as the words of a refusal propose."""
    if found := re.search(r"--prefer (\w+)", nearest):
        prefer = found[1]
    if found := re.search(r"--cascade ([\w-]+)", nearest):
        request = request.with_cascade(found[1])
    if found := re.search(r"--size (\d+)", nearest):
        request = request.no_larger_than(int(found[1]))
    return request, prefer, {} if "without the pins" in nearest else pins


@thorough
@given(machines, requests, preferences, pins)
def test_what_a_refusal_proposes_really_fits(
    machine: Machine, request: Request, prefer: str | None, pins: dict[str, Pin]
) -> None:
    """Following a refusal's advice gives a plan; "no smaller request fits" is always true."""
    try:
        error = refusal(machine, request, prefer=prefer, pins=pins)
    except (DeviceError, RequestError):
        return
    if error is None:
        return
    nearest = error.nearest
    if "No smaller request" not in nearest:
        changed, preference, left = take(nearest, request, prefer, pins)
        assert (changed, preference, left) != (request, prefer, pins)
        assert make_plan(machine, changed, prefer=preference, pins=left)
        return
    place = catalog.CASCADES.index(request.cascade)
    for cascade in catalog.CASCADES[place:]:
        for preference in PREFERENCES:
            other = request.with_cascade(cascade)
            assert try_plan(machine, other, prefer=preference) is None, (cascade, preference)


def test_the_nearest_is_the_largest_cascade_that_fits_at_all() -> None:
    """Where if-l fits, nobody is sent down to the demo."""
    machine = cpu(2.45)
    assert try_plan(machine, ask("if-xl", size=256), prefer="balanced") is None
    assert try_plan(machine, ask("if-l", size=256)) is not None
    with pytest.raises(DoesNotFit) as caught:
        make_plan(machine, ask("if-xl", size=256))
    assert caught.value.nearest.startswith("Try --cascade if-l, or free ")


def test_a_smaller_preference_is_proposed_before_a_smaller_cascade() -> None:
    """What keeps the cascade is nearer than what gives it up."""
    with pytest.raises(DoesNotFit) as caught:
        make_plan(cpu(5), ask("if-l"), prefer="exact")
    assert caught.value.nearest.startswith("Try --prefer faithful, or free ")
    with pytest.raises(DoesNotFit) as caught:
        make_plan(cpu(2.45), ask("if-xl", size=256), prefer="balanced")
    assert caught.value.nearest.startswith("Try --cascade if-l, or free ")


def test_where_nothing_fits_the_refusal_says_so() -> None:
    """A machine without any memory is told to free some, or to raise its budget."""
    with pytest.raises(DoesNotFit) as caught:
        make_plan(cpu(0.1), ask("if-m"))
    assert "No smaller request fits" in caught.value.nearest
    assert "--ram" in caught.value.nearest


def test_a_missing_demo_does_not_hide_what_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Looking for something nearer, a cascade that cannot even be located is passed over."""
    monkeypatch.setattr(locations, "DEMO_FOLDER", tmp_path / "not bundled")
    with pytest.raises(DoesNotFit) as caught:
        make_plan(cpu(2), ask("if-xl"))
    assert caught.value.component == TEXT_ENCODER
    assert "No smaller request fits" in caught.value.nearest


def test_a_broken_smaller_cascade_does_not_hide_what_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: Path
) -> None:
    """A damaged file of a cascade that nobody asked for is not this request's error."""
    broken = Path(shutil.copytree(tiny, tmp_path / "demo"))
    next(broken.glob("stage_1/unet/*.safetensors")).write_bytes(b"")
    monkeypatch.setattr(locations, "DEMO_FOLDER", broken)
    with pytest.raises(DoesNotFit) as caught:
        make_plan(cpu(2), ask("if-xl"))
    assert "No smaller request fits" in caught.value.nearest


def test_the_demo_is_proposed_where_only_it_fits() -> None:
    """The bundled cascade fits nearly everywhere, streams need a few GB for activations alone."""
    with pytest.raises(DoesNotFit) as caught:
        make_plan(cpu(2), ask("if-m"), prefer="balanced")
    assert caught.value.nearest.startswith("Try --cascade demo, or free ")


def test_a_picture_to_enlarge_that_does_not_fit_is_told_in_bytes(tmp_path: Path) -> None:
    """What would fit instead is sought among requests that there are: not every mode has every size."""
    Image.new("RGB", (512, 512)).save(picture := tmp_path / "own.png")
    request = make_request(("",), cascade="if-xl", mode="upscale", image=str(picture), seed=(1,))
    with pytest.raises(DoesNotFit) as caught:
        make_plan(card(1, 1), request)
    assert caught.value.component == UPSCALER
    assert "GB more" in caught.value.nearest


def test_a_setting_that_lacks_both_tells_the_greater_lack() -> None:
    """Where VRAM and RAM are short at once, the figures are of what is missing most."""
    pins = {STAGE_1: Pin(SEQUENTIAL_OFFLOAD), TEXT_ENCODER: Pin(SEQUENTIAL_OFFLOAD)}
    for vram, ram, resource in ((0.9, 8, "RAM"), (0.1, 13.0, "VRAM")):
        error = refusal(card(vram, ram), ask(size=64), pins=pins)
        assert error is not None
        assert (error.component, error.resource) == (TEXT_ENCODER, resource)
