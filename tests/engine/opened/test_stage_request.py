"""What a user may say to open a stage, in every spelling, and what is refused before anything loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from machines import card, cpu

from lowmem_if.cascade.catalog import STAGE_1, STAGE_2, UPSCALER
from lowmem_if.cascade.modes import INPAINT, TEXT, VARY
from lowmem_if.cascade.strategies import Pin
from lowmem_if.engine.opened.stage_request import StageRequest
from lowmem_if.errors import DeviceError, DoesNotFit, LowmemError, RequestError


def wanted(stage: Any = 1, cascade: str | Path = "if-xl", **given: Any) -> StageRequest:
    return StageRequest.of(cascade, stage, given)


@pytest.mark.parametrize(
    ("spellings", "component"),
    [
        ((1, "1", "stage_1", "Stage 1", "stage-1", "I"), STAGE_1),
        ((2, "2", "stage_2", "II"), STAGE_2),
        ((3, "3", "stage_3", "upscaler", "III"), UPSCALER),
    ],
)
def test_a_stage_has_a_number_and_names(spellings: tuple[Any, ...], component: str) -> None:
    """As a number, as text, and as the package and diffusers' documentation call it."""
    assert {wanted(stage).component for stage in spellings} == {component}


@pytest.mark.parametrize(
    ("spellings", "mode"),
    [
        ((None, "text", "upscale"), TEXT),
        (("vary", "img2img", "IMG2IMG"), VARY),
        (("inpaint", "inpainting"), INPAINT),
    ],
)
def test_a_mode_has_our_names_and_those_of_diffusers(spellings: tuple[Any, ...], mode: str) -> None:
    """Both lead to the same pipeline."""
    assert {wanted(mode=spelling).mode for spelling in spellings} == {mode}


@pytest.mark.parametrize("dtype", ["float16", "fp16", "half", torch.float16, torch.half])
def test_a_number_type_is_a_name_or_torchs_own(dtype: Any) -> None:
    """As `from_pretrained` takes it."""
    assert wanted(dtype=dtype).storage == "float16"


@pytest.mark.parametrize(
    ("stage", "given", "message"),
    [
        (4, {}, "no stage 4: use 1, 2 or 3"),
        ("text_encoder", {}, "no stage 'text_encoder'"),
        (1, {"mode": "paint"}, "unknown mode 'paint': use text, vary .img2img. or inpaint"),
        (3, {"mode": "vary"}, "the upscaler has no mode vary"),
        (1, {"dtype": "int8"}, "a UNet cannot compute in int8"),
        (1, {"pin": "resident:float32", "dtype": "float16"}, "give one"),
        (1, {"pin": "somewhere"}, "unknown strategy 'somewhere'"),
        (1, {"batch": 0}, "batch is 0"),
        (1, {"batch": True}, "batch is True"),
        (1, {"revision": 3}, "revision"),
    ],
)
def test_wrong_values_are_refused_in_words(stage: Any, given: dict[str, Any], message: str) -> None:
    """Each names the value and what is possible."""
    with pytest.raises(RequestError, match=message):
        wanted(stage, **given)


def test_float16_on_a_cpu_is_refused_with_what_to_say() -> None:
    """As an option or in a pin; on a card it is planned."""
    for given in ({"dtype": "float16"}, {"pin": "stream:fp16"}):
        with pytest.raises(DeviceError, match="use dtype='bfloat16' or dtype='float32'"):
            wanted(**given).planned(cpu(64))
    step, _location = wanted(dtype=torch.float16).planned(card(15, 12))
    assert step.config.storage_dtype == "float16"


def test_a_pin_and_a_number_type_go_together() -> None:
    """The pin's strategy with the option's type."""
    step, _location = wanted(pin="stream", dtype="bfloat16").planned(card(15, 12))
    assert (step.config.strategy, step.config.storage_dtype) == ("stream", "bfloat16")
    step, _location = wanted(pin=Pin("resident")).planned(card(15, 12))
    assert step.config.strategy == "resident"


def test_what_does_not_fit_names_a_cascade_that_does() -> None:
    """How much is missing, and the largest smaller cascade whose stage fits."""
    with pytest.raises(
        DoesNotFit, match=r"Free \S+ [MG]B more RAM, or open the one of if-l\."
    ) as caught:
        wanted().planned(cpu(1.2))
    assert "stage 1 does not fit" in str(caught.value)
    with pytest.raises(LowmemError, match=r"more RAM\.$"):
        wanted(cascade="if-m").planned(cpu(0.4))


def test_the_name_of_a_folder_is_short(tmp_path: Path) -> None:
    """Messages and plans name the cascade's folder, not the path to it."""
    folder = tmp_path / "mine"
    folder.mkdir()
    assert wanted(2, folder).name == "stage 2 of mine"
    assert wanted(3).name == "upscaler of if-xl"


def test_a_profiles_pin_is_a_default() -> None:
    """What the user says wins."""
    own = Pin("stream", "float32")
    assert wanted().with_default(own).pin == own
    assert wanted().with_default(None).pin is None
    assert wanted(pin="resident").with_default(own).pin == Pin("resident")
    assert wanted(dtype="float16").with_default(own).pin is None
