"""A plan as JSON: a value that survives writing and reading, and is refused when it is damaged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import (
    ask,
    card,
    drawn_plans,
)

from lowmem_if.cascade.strategies import PREFERENCES
from lowmem_if.errors import (
    RequestError,
    RunFolderError,
)
from lowmem_if.planning.plan import Plan, make_plan

pytestmark = pytest.mark.usefixtures("nothing_downloaded")


@pytest.mark.slow
def test_a_plan_is_a_value_that_survives_json() -> None:
    """Written as JSON text and read back, a plan is equal to itself, and says that it fits."""
    for plan in filter(None, (drawn.plan for drawn in drawn_plans())):
        text = json.dumps(plan.to_json())
        data = json.loads(text)
        assert data["fits"] is True
        assert Plan.from_json(data) == plan
        assert json.dumps(Plan.from_json(data).to_json()) == text


@pytest.mark.slow
@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(
    st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=3),
    st.sampled_from([None, "fast27", "super100"]),
    st.none() | st.tuples(*[st.floats(0, 100) | st.integers(0, 100)] * 3),
)
def test_any_request_survives_the_plans_json(
    prompts: list[str], timesteps: str | None, guidance: tuple[float, ...] | None
) -> None:
    """Prompts of any script, named timesteps and odd guidance come back as they were."""
    try:
        request = ask("if-m", prompts=tuple(prompts), timesteps=timesteps, guidance_scale=guidance)
    except RequestError:
        return
    plan = make_plan(card(80, 80), request)
    read = Plan.from_json(json.loads(json.dumps(plan.to_json(), ensure_ascii=False)))
    assert read == plan
    assert [spec.prompt for spec in read.request.images] == list(prompts)


def test_the_json_holds_what_the_command_line_promises() -> None:
    """`plan --json` has machine, request and steps with the keys that the contract names."""
    data = make_plan(card(16, 16), ask()).to_json()
    assert {"fits", "machine", "request", "steps"} <= set(data)
    for each in data["steps"]:
        assert {
            "component", "strategy", "storage_dtype", "compute_dtype", "batch", "predicted", "reason",
            "instead_of",
        } <= set(each)  # fmt: skip
        assert set(each["predicted"]) == {"vram_bytes", "ram_bytes", "seconds", "read_bytes"}


def _damaged(data: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for key in data:
        if key != "fits":
            yield f"without {key}", {k: v for k, v in data.items() if k != key}
            yield f"{key} is nonsense", data | {key: "nonsense" if key != "prefer" else 5}
    first, *rest = data["steps"]
    for key in first:
        lost = {k: v for k, v in first.items() if k != key}
        yield f"a step without {key}", data | {"steps": [lost, *rest]}
    yield "a request nobody can run", data | {"request": data["request"] | {"size": 65}}
    yield "an empty prompt", data | {"request": data["request"] | {"prompts": [""]}}


def test_a_damaged_plan_is_refused_in_one_line() -> None:
    """A plan that misses a part, or holds another type or an impossible request, is a RunFolderError;
    what stays of streaming weights, LoRAs, strips, and who chose the level are not in plans of the first
    versions, and tiles are in no other."""
    data = make_plan(card(16, 16), ask()).to_json()
    accepted = []
    for harm, damaged in _damaged(json.loads(json.dumps(data))):
        try:
            Plan.from_json(damaged)
            accepted.append(harm)
        except RunFolderError as error:
            text = str(error)
        assert re.fullmatch(r"the plan cannot be read \(.*\); start a new folder", text), harm
    later = [
        f"a step without {name}"
        for name in ("resident_bytes", "speedup", "layout", "decoding", "vae_tiling", "lora")
    ]
    assert accepted == ["without automatic", *later]


@pytest.mark.parametrize(
    ("prefer", "levels"), [("exact", PREFERENCES), ("balanced", ("balanced",))]
)
def test_a_plan_of_the_first_versions_keeps_its_level(prefer: str, levels: tuple[str, ...]) -> None:
    """`exact` was what nobody had to ask for: such a run may go further when memory runs out."""
    data = make_plan(card(16, 16), ask(), prefer=prefer).to_json()
    read = Plan.from_json({key: value for key, value in data.items() if key != "automatic"})
    assert (read.prefer, read.levels) == (prefer, levels)
    assert (read.asked, read.loosened) == (None if prefer == "exact" else prefer, "")


@pytest.mark.parametrize(("tiled", "decoding"), [(False, "whole"), (True, "tiles")])
def test_plans_of_earlier_versions_say_whether_the_vae_is_tiled(tiled: bool, decoding: str) -> None:
    """A run that was begun with a tiled VAE goes on with it; their key is still written."""
    data = make_plan(card(80, 80), ask("if-m")).to_json()
    (upscaler,) = (each for each in data["steps"] if each["component"] == "upscaler")
    del upscaler["decoding"]
    upscaler["vae_tiling"] = tiled
    read = Plan.from_json(data)
    assert read.step("upscaler").config.decoding == decoding
    (again,) = (each for each in read.to_json()["steps"] if each["component"] == "upscaler")
    assert (again["vae_tiling"], again["decoding"]) == (tiled, decoding)
