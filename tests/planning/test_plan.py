"""The planner over machines of every kind and size: what holds for each plan and each refusal."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import (
    BASE,
    GB,
    apples,
    ask,
    card,
    cpu,
    cpus,
    machines,
    pins,
    preferences,
    rams,
    refusal,
    requests,
    step,
    thorough,
    try_plan,
    vrams,
)
from PIL import Image

from lowmem_if.cascade import catalog
from lowmem_if.cascade import locate as locations
from lowmem_if.cascade.catalog import POSTPROCESS, STAGE_1, STAGE_2, TEXT_ENCODER, UPSCALER
from lowmem_if.cascade.locate import locate
from lowmem_if.cascade.parts import Module, Part, Weights
from lowmem_if.cascade.strategies import (
    MODEL_OFFLOAD,
    PREFERENCES,
    QUANTISED,
    RESIDENT,
    SEQUENTIAL_OFFLOAD,
    STORAGES,
    STRATEGIES,
    STREAM,
    Pin,
)
from lowmem_if.errors import (
    CascadeError,
    CheckpointError,
    DeviceError,
    DoesNotFit,
    RequestError,
    RunFolderError,
)
from lowmem_if.hardware.machine import Machine
from lowmem_if.hardware.profiles import load_profile, profile_names
from lowmem_if.hardware.speeds import ANY, Throughput, assumed
from lowmem_if.planning.estimates.execution import ExecutionConfig
from lowmem_if.planning.estimates.memory import headroom, predict
from lowmem_if.planning.estimates.memory_table import look_up_step
from lowmem_if.planning.estimates.runtime import predict_seconds
from lowmem_if.planning.estimates.weight_bytes import resident_choices
from lowmem_if.planning.estimates.workload import Workload, workloads_of
from lowmem_if.planning.plan import Plan, make_plan
from lowmem_if.request.build import make_request
from lowmem_if.request.request import Request
from lowmem_if.request.sampling import Sampling

pytestmark = pytest.mark.usefixtures("nothing_downloaded")

JOBS = (Workload(texts=2, images=1, sampling=Sampling(10, None, 7.0, None)),)


def test_the_machines_of_these_tests_are_worth_testing() -> None:
    """Of the machines and requests below, enough are planned for, and enough are not."""
    seen = Counter[str]()

    @settings(thorough, max_examples=900)  # which it draws depends on this test's very text
    @given(machines, requests, preferences, pins)
    def count(machine: Machine, request: Request, prefer: str, pins: dict[str, Pin]) -> None:
        plan = try_plan(machine, request, prefer=prefer)
        seen["planned" if plan else "refused"] += 1
        for each in plan.steps if plan else ():
            seen.update([each.config.strategy, each.config.device])
            seen["partly resident"] += each.config.resident_bytes > 0
        with suppress(DoesNotFit, DeviceError, RequestError):
            pinned = make_plan(machine, request, prefer=prefer, pins=pins)
            seen["planned with pins"] += 1
            seen.update(each.config.strategy for each in pinned.steps)

    count()
    assert min(seen["planned"], seen["refused"]) > 30, seen
    assert seen["planned with pins"] > 15, seen
    for word in ("cuda:0", "xpu:0", "mps", "cpu", RESIDENT, SEQUENTIAL_OFFLOAD, STREAM):
        assert seen[word] > 20, seen
    assert seen["partly resident"] > 20, seen
    assert seen[MODEL_OFFLOAD] > 5, seen


# --- every plan ---------------------------------------------------------------------------------


def test_any_machine_is_either_planned_for_or_told_what_does_not_fit() -> None:
    """From nothing to plenty no machine makes the planner crash."""
    for vram in (0, 1, 4, 6, 8, 12, 16, 24):
        for ram in (0, 1, 4, 8, 12, 16, 32):
            for machine in (card(vram, ram), card(vram, ram, "mps"), cpu(ram)):
                try_plan(machine, ask())


@thorough
@given(machines, requests, preferences)
def test_a_plan_keeps_within_the_budget(machine: Machine, request: Request, prefer: str) -> None:
    """Every step's predicted peaks and the headroom are within VRAM and RAM; on Apple, together."""
    plan = try_plan(machine, request, prefer=prefer)
    for each in plan.steps if plan else ():
        vram_spare, ram_spare = headroom(each.config.device)
        assert each.estimate.ram_bytes + ram_spare <= machine.ram_bytes
        assert (
            each.estimate.vram_bytes + vram_spare <= machine.vram_bytes
            or each.config.device == "cpu"
        )
        if machine.kind == "mps":
            both = each.estimate.vram_bytes + each.estimate.ram_bytes + ram_spare
            assert both <= machine.ram_bytes


@thorough
@given(machines, requests, preferences)
def test_a_budget_is_used_to_its_last_byte(machine: Machine, request: Request, prefer: str) -> None:
    """With just what a plan needs it is made again; with a byte of RAM or VRAM less it is not."""
    plan = try_plan(machine, request, prefer=prefer)
    if plan is None:
        return
    ram, vram = 0, 0
    for each in plan.steps:
        vram_spare, ram_spare = headroom(each.config.device)
        shared = each.estimate.vram_bytes if machine.unified else 0
        ram = max(ram, each.estimate.ram_bytes + shared + ram_spare)
        if each.config.device != "cpu":
            vram = max(vram, each.estimate.vram_bytes + vram_spare)

    def settings_with(ram: int, vram: int) -> list[ExecutionConfig] | None:
        again = try_plan(replace(machine, ram_bytes=ram, vram_bytes=vram), request, prefer=prefer)
        return [each.config for each in again.steps] if again else None

    same = [each.config for each in plan.steps]
    assert settings_with(ram, vram) is not None
    assert settings_with(ram - 1, vram) != same
    if vram:
        assert settings_with(ram, vram - 1) != same


@thorough
@given(machines, requests, preferences)
def test_a_plan_has_a_settled_step_for_each_component(
    machine: Machine, request: Request, prefer: str
) -> None:
    """Steps come in running order; each has known words, a reason and a time."""
    plan = try_plan(machine, request, prefer=prefer)
    if plan is None:
        return
    assert (plan.machine, plan.request, plan.prefer, plan.pins) == (machine, request, prefer, {})
    assert tuple(each.component for each in plan.steps) == request.components
    for each in plan.steps:
        assert each.config.strategy in STRATEGIES
        assert each.config.storage_dtype in STORAGES
        assert each.config.compute_dtype in STORAGES
        assert each.config.compute_dtype not in QUANTISED
        assert each.config.device in (machine.device, "cpu")
        texts = each.component == TEXT_ENCODER  # negative ones, too
        assert 1 <= each.config.batch <= max(1, len(request.images)) + texts
        assert each.reason
        assert each.estimate.seconds > 0
        assert each.config.strategy == STREAM or each.config.resident_bytes == 0
        assert (each.sampling is not None) == (each.component in catalog.IMAGE_STAGES)


@thorough
@given(machines, requests, preferences, vrams, rams)
def test_more_memory_is_never_slower(
    machine: Machine, request: Request, prefer: str, more_vram: float, more_ram: float
) -> None:
    """More VRAM and RAM fit what fitted, and no step takes longer for it."""
    larger = replace(machine, ram_bytes=machine.ram_bytes + int(more_ram * GB))
    if machine.kind != "cpu":
        larger = replace(larger, vram_bytes=machine.vram_bytes + int(more_vram * GB))
    before = try_plan(machine, request, prefer=prefer)
    if before is None:
        return
    after = make_plan(larger, request, prefer=prefer)
    assert after.seconds <= before.seconds
    for small, large in zip(before.steps, after.steps, strict=True):
        assert large.estimate.seconds <= small.estimate.seconds


@pytest.mark.parametrize("features", [(), ("avx512_bf16",)])
@pytest.mark.parametrize("prefer", PREFERENCES)
def test_no_larger_memory_ever_slows_a_step(features: tuple[str, ...], prefer: str) -> None:
    """From 2 to 20 GB on a CPU, every 100 MB more keep or shorten the time of each step."""
    before: Plan | None = None
    for tenths in range(20, 200):
        machine = cpu(tenths / 10, *features)
        plan = try_plan(machine, ask("if-xl", images=2, size=256), prefer=prefer)
        for small, large in zip(*(p.steps if p else () for p in (before, plan)), strict=False):
            assert large.estimate.seconds <= small.estimate.seconds, (tenths, small, large)
        before = plan


@pytest.mark.parametrize("cascade", ["if-xl", "if-m"])
@pytest.mark.parametrize("prefer", PREFERENCES)
@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize("ram", [12, 64])
def test_no_larger_card_is_ever_slower(cascade: str, prefer: str, kind: str, ram: float) -> None:
    """From no VRAM to 24 GB, every 100 MB more keep or raise the speed of each step."""
    before: Plan | None = None
    for tenths in range(240):
        machine = card(tenths / 10, ram, kind)
        plan = try_plan(machine, ask(cascade, images=2), prefer=prefer)
        assert plan or not before
        if plan and before:
            for small, large in zip(before.steps, plan.steps, strict=True):
                assert large.estimate.seconds <= small.estimate.seconds, (tenths, small, large)
        before = plan


@thorough
@given(machines, requests, preferences)
def test_a_plan_is_a_value_that_survives_json(
    machine: Machine, request: Request, prefer: str
) -> None:
    """Written as JSON text and read back, a plan is equal to itself, and says that it fits."""
    plan = try_plan(machine, request, prefer=prefer)
    if plan is None:
        return
    text = json.dumps(plan.to_json())
    data = json.loads(text)
    assert data["fits"] is True
    assert Plan.from_json(data) == plan
    assert json.dumps(Plan.from_json(data).to_json()) == text


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
    what stays of streaming weights, and LoRAs, are not in plans that were made before there were any."""
    data = make_plan(card(16, 16), ask()).to_json()
    accepted = []
    for harm, damaged in _damaged(json.loads(json.dumps(data))):
        try:
            Plan.from_json(damaged)
            accepted.append(harm)
        except RunFolderError as error:
            text = str(error)
        assert re.fullmatch(r"the plan cannot be read \(.*\); start a new folder", text), harm
    assert accepted == [f"a step without {name}" for name in ("resident_bytes", "speedup", "lora")]


def test_planning_is_a_function_of_its_arguments() -> None:
    """The same machine and request give the same plan."""
    assert make_plan(card(8, 16), ask()) == make_plan(card(8, 16), ask())


@pytest.mark.parametrize("name", profile_names())
@pytest.mark.parametrize("cascade", catalog.CASCADES)
@pytest.mark.parametrize("prefer", PREFERENCES)
def test_every_profile_gets_a_plan_or_the_reason_why_not(
    name: str, cascade: str, prefer: str
) -> None:
    """For each shipped machine and cascade there is a plan, or a DoesNotFit with a way out."""
    machine = load_profile(name).machine
    error = refusal(machine, ask(cascade), prefer=prefer)
    assert error is None or error.nearest.startswith(("Try ", "No smaller request fits. "))


# --- preferences and number types ---------------------------------------------------------------


def test_an_unknown_preference_is_refused_with_the_known_ones() -> None:
    """There is exact and balanced."""
    with pytest.raises(RequestError, match=r"'fast'.*exact.*balanced"):
        make_plan(BASE, ask(), prefer="fast")


@thorough
@given(machines, requests)
def test_exact_draws_one_image_at_a_time_in_the_machines_own_type(
    machine: Machine, request: Request
) -> None:
    """Under `exact` memory decides where weights live, never in which type a stage draws."""
    plan = try_plan(machine, request)
    for each in plan.steps if plan else ():
        assert (
            each.config.batch == 1 or each.component == TEXT_ENCODER
        )  # texts go one by one in any case
        assert not each.config.vae_tiling
        if each.component in catalog.IMAGE_STAGES:
            assert each.config.storage_dtype == each.config.compute_dtype
            small = each.component == STAGE_1 and request.cascade == "if-m"
            assert each.config.storage_dtype == machine.compute_dtype or small
        assert each.config.storage_dtype != "nf4"


@pytest.mark.parametrize(("images", "batch"), [(1, 1), (2, 2), (3, 2), (5, 4), (8, 8), (9, 8)])
def test_balanced_draws_images_together_as_memory_allows(images: int, batch: int) -> None:
    """With plenty of memory the batch is the largest power of two up to eight; exact keeps to one."""
    request = ask(images=images)
    balanced = make_plan(card(80, 80), request, prefer="balanced")
    assert step(balanced, STAGE_2).config.batch == batch
    assert step(make_plan(card(80, 80), request), STAGE_2).config.batch == 1
    assert step(make_plan(card(4.2, 80), request, prefer="balanced"), STAGE_2).config.batch == 1


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
@pytest.mark.parametrize("prefer", PREFERENCES)
@pytest.mark.parametrize("vram", [10, 80])
def test_the_text_encoder_is_8bit_on_an_accelerator(kind: str, prefer: str, vram: int) -> None:
    """The 8-bit encoder is the default on a card, exact or balanced, with room or without."""
    encoder = step(make_plan(card(vram, 32, kind), ask(), prefer=prefer), TEXT_ENCODER)
    assert (encoder.config.storage_dtype, encoder.config.strategy) == ("int8", RESIDENT)
    assert encoder.config.device == f"{kind}:0"
    assert encoder.config.compute_dtype == "float16"


@pytest.mark.parametrize("prefer", PREFERENCES)
def test_apple_has_no_8bit_kernels(prefer: str) -> None:
    """On Apple the encoder streams in float16, or on the CPU: 8 bits only work there."""
    for machine, device, strategy, storage in (
        (card(40, 64, "mps"), "mps", STREAM, "float16"),
        (card(10, 12, "mps"), "mps", STREAM, "float16"),
        (card(1.5, 12, "mps"), "cpu", STREAM, "float32"),
    ):
        encoder = step(make_plan(machine, ask("if-m", size=64), prefer=prefer), TEXT_ENCODER)
        assert (encoder.config.device, encoder.config.strategy, encoder.config.storage_dtype) == (
            device, strategy, storage,
        )  # fmt: skip


def test_only_balanced_quantises_on_a_cpu() -> None:
    """On a CPU the encoder streams in the machine's type under exact and may be 8-bit under balanced."""
    roomy, tight = cpu(64, "avx512_bf16"), cpu(9.5, "avx512_bf16")
    encoder = step(make_plan(roomy, ask()), TEXT_ENCODER)
    assert (encoder.config.strategy, encoder.config.storage_dtype) == (STREAM, "bfloat16")
    exact = step(make_plan(tight, ask("if-l")), TEXT_ENCODER)
    assert (exact.config.strategy, exact.config.storage_dtype) == (STREAM, "bfloat16")
    encoder = step(make_plan(tight, ask("if-l"), prefer="balanced"), TEXT_ENCODER)
    assert encoder.config.storage_dtype in QUANTISED
    assert encoder.config.compute_dtype == "bfloat16"


def test_only_balanced_takes_nf4() -> None:
    """On a card with room for 4 bits and not for 8, behind a slow bus, balanced quantises; otherwise
    the encoder streams once, which takes no longer than loading it."""
    slow = replace(assumed("cuda"), disk_bytes=1e10, fill_bytes=5e9, bus_bytes=1e9)
    machine = replace(card(7.5, 12), rates=slow)
    assert (
        step(make_plan(machine, ask(), prefer="balanced"), TEXT_ENCODER).config.storage_dtype
        == "nf4"
    )
    for plan in (make_plan(machine, ask()), make_plan(card(7.5, 12), ask(), prefer="balanced")):
        assert step(plan, TEXT_ENCODER).config.storage_dtype != "nf4"


@thorough
@given(machines, requests, preferences)
def test_nothing_ever_computes_in_float16_on_a_cpu(
    machine: Machine, request: Request, prefer: str
) -> None:
    """A step on the CPU, for whatever reason it is there, has a type that CPUs are fast in."""
    plan = try_plan(machine, request, prefer=prefer)
    for each in plan.steps if plan else ():
        if each.config.device == "cpu":
            assert "float16" not in (each.config.storage_dtype, each.config.compute_dtype)


@thorough
@given(cpus, requests, preferences)
def test_a_cpu_never_offloads(machine: Machine, request: Request, prefer: str) -> None:
    """Without an accelerator every component is resident or streams on the CPU and takes no VRAM."""
    plan = try_plan(machine, request, prefer=prefer)
    for each in plan.steps if plan else ():
        assert each.config.device == "cpu"
        assert each.config.strategy in (RESIDENT, STREAM)
        assert each.estimate.vram_bytes == 0


@thorough
@given(machines, requests, preferences)
def test_the_finish_is_always_on_the_cpu(machine: Machine, request: Request, prefer: str) -> None:
    """Safety checker and watermark run in float32 on the CPU, where the pictures are."""
    plan = try_plan(machine, request, prefer=prefer)
    if plan:
        finish = plan.steps[-1]
        assert (finish.component, finish.config.device, finish.config.strategy) == (
            POSTPROCESS,
            "cpu",
            RESIDENT,
        )
        assert (finish.config.storage_dtype, finish.config.compute_dtype) == ("float32", "float32")


@thorough
@given(apples, preferences)
def test_apple_never_offloads_and_never_quantises_on_the_gpu(machine: Machine, prefer: str) -> None:
    """Where VRAM is RAM weights can only stay or stream, and bitsandbytes has no kernels there."""
    plan = try_plan(machine, ask(), prefer=prefer)
    for each in plan.steps if plan else ():
        assert each.config.strategy in (RESIDENT, STREAM)
        assert each.config.device == "cpu" or each.config.storage_dtype not in QUANTISED


def test_on_apple_one_budget_holds_both() -> None:
    """A share of the accelerator that would fit alone does not fit beside the process's own RAM."""
    machine = card(10, 12, "mps")
    resident = {STAGE_1: Pin(RESIDENT)}
    stage = step(make_plan(machine, ask(size=64)), STAGE_1)  # no whole decoder fits there
    assert (stage.config.device, stage.config.strategy) == ("mps", RESIDENT)
    both = stage.estimate.vram_bytes + stage.estimate.ram_bytes + headroom("mps")[1]
    with pytest.raises(DoesNotFit) as caught:
        make_plan(replace(machine, ram_bytes=both - 1), ask(size=64), pins=resident)
    assert (caught.value.component, caught.value.needed_bytes) == (STAGE_1, both)
    assert caught.value.available_bytes == both - 1
    for ram, strategy in ((both, RESIDENT), (both - 1, STREAM)):
        plan = make_plan(replace(machine, ram_bytes=ram), ask(size=64))
        assert step(plan, STAGE_1).config.strategy == strategy


LIKE_CARDS = {"mps": 6.4, "cuda": 6}
"""GB with which an Apple GPU and a card keep as much of I-XL: attention takes 0.4 GB more there."""


def test_on_apple_what_the_accelerator_takes_keeps_no_file_cached() -> None:
    """Of one budget, weights on the accelerator leave less for the pages of the file that streams."""
    pins = {STAGE_1: Pin(STREAM)}
    seconds = []
    for kind, vram in LIKE_CARDS.items():
        stage = step(make_plan(card(vram, 9, kind), ask(size=64), pins=pins), STAGE_1)
        assert stage.estimate.vram_bytes > 5 * GB
        seconds.append(stage.estimate.seconds)
    unified, apart = seconds
    assert unified is not None
    assert apart is not None
    assert unified > 2 * apart


NF4 = Pin(RESIDENT, "float16")


# --- strategies ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vram", "ram", "strategy"),
    [
        (10, 16, RESIDENT),
        (10, 4, RESIDENT),
        (7, 16, STREAM),
        (3, 16, STREAM),
        (7, 4, STREAM),
        (3, 4, STREAM),
    ],
)
def test_stage_1_leaves_the_card_as_memory_gets_short(
    vram: float, ram: float, strategy: str
) -> None:
    """I-XL is resident where it fits; else as much as fits stays and the rest streams, which hides
    behind computing, as leaves that move from RAM do not."""
    assert step(make_plan(card(vram, ram), ask(size=64)), STAGE_1).config.strategy == strategy


@pytest.mark.parametrize(
    ("vram", "ram", "strategy"),
    [
        (6, 32, RESIDENT),
        (4.1, 32, MODEL_OFFLOAD),
        (3.95, 32, SEQUENTIAL_OFFLOAD),
        (5, 2.5, STREAM),
    ],
)
def test_the_upscaler_moves_whole_modules_before_leaves(
    vram: float, ram: float, strategy: str
) -> None:
    """Its three networks take turns on the card, which costs little, before leaves must move, and stream
    where RAM does not hold them."""
    plan = make_plan(card(vram, ram), ask("if-m"))
    assert step(plan, UPSCALER).config.strategy == strategy


def test_a_card_too_small_for_the_encoder_leaves_it_to_the_cpu() -> None:
    """One pass on the CPU lets a card in that has no room even for an encoder that streams: it streams
    there, for reading the file once is quicker than computing in 8 bits."""
    for vram, ram, device, strategy, storage in (
        (6, 12, "cuda:0", STREAM, "float16"),
        (1.5, 12, "cpu", STREAM, "float32"),
        (1.5, 4, "cpu", STREAM, "float32"),
    ):
        encoder = step(make_plan(card(vram, ram), ask("if-m", size=64)), TEXT_ENCODER)
        assert (encoder.config.device, encoder.config.strategy, encoder.config.storage_dtype) == (
            device, strategy, storage,
        )  # fmt: skip
        assert encoder.config.compute_dtype == ("float16" if device == "cuda:0" else "float32")


def test_a_choice_says_what_it_was_preferred_to() -> None:
    """A step that came second names the first choice with what it needed and what there was."""
    stage = step(make_plan(card(7, 16), ask(size=64)), STAGE_1)
    assert re.fullmatch(
        r"resident float16: 1 min \d+ s, but needs \d+\.\d GB of VRAM, 7\.0 GB available",
        stage.instead_of,
    )


def test_a_roomy_choice_says_how_much_is_left_and_what_would_fit_too() -> None:
    """A first choice tells its spare memory, and the next one that fits."""
    stage = step(make_plan(card(24, 32), ask(size=64)), STAGE_1)
    assert "VRAM to spare" in stage.reason
    assert re.fullmatch(r"stream float16, 7\.5 GB resident: 1 min \d+ s", stage.instead_of)


@thorough
@given(machines, requests, preferences)
def test_a_choice_never_beats_itself(machine: Machine, request: Request, prefer: str) -> None:
    """What a step was taken instead of reads differently from the step."""
    plan = try_plan(machine, request, prefer=prefer)
    for each in plan.steps if plan else ():
        other = each.instead_of.partition(":")[0]
        assert each.config.device != machine.device or other != str(each.config)


def test_what_stays_of_a_stream_is_told_apart_in_words() -> None:
    """No two choices of what stays in place read alike, of any network, and none reads as 0.0 GB."""
    sizes = [10**power for power in range(3, 11)]
    small = [Module("unet", Weights(n), 2 * n) for n in sizes]
    parts = [Part("stage_1", None, (module,)) for module in small]
    parts += [
        cascade.parts[name]
        for cascade in catalog.PUBLISHED.values()
        for name in (STAGE_1, UPSCALER)
    ]
    for part in parts:
        streams = ExecutionConfig(STAGE_1, STREAM, "float16", "float16", 1, "cpu")
        choices = resident_choices(part, streams)
        assert choices[-1] == 0
        words = [str(replace(streams, resident_bytes=stays)) for stays in choices]
        assert len(set(words)) == len(words)
        assert not any(", 0.0 GB" in word for word in words)


@pytest.mark.parametrize(
    ("component", "ram", "batch", "resident"),
    [(STAGE_1, 3, 4, False), (STAGE_1, 9, 8, True), (STAGE_2, 4, 2, True)],
)
def test_a_stream_takes_the_batch_and_the_residents_that_spare_most_reading(
    component: str, ram: float, batch: int, resident: bool
) -> None:
    """Images share passes in stage 1; in stage 2, where each takes a quarter of the weights' memory,
    only two do and most weights stay."""
    request = ask(images=8)
    stage = step(make_plan(cpu(ram, "avx512_bf16"), request, prefer="balanced"), component)
    assert (stage.config.strategy, stage.config.batch, stage.config.resident_bytes > 0) == (
        STREAM,
        batch,
        resident,
    )


@thorough
@given(machines, requests, preferences, pins)
def test_what_streams_is_the_quickest_way_to_stream_that_fits(
    machine: Machine, request: Request, prefer: str, pins: dict[str, Pin]
) -> None:
    """No other batch, with no other part staying, would have the weights less long on their way."""
    try:
        plan = make_plan(machine, request, prefer=prefer, pins=pins)
    except (DoesNotFit, DeviceError, RequestError):
        return
    cascade = locate(request.cascade, components=request.components).cascade
    parts, images = cascade.parts, len(request.images)
    for each in plan.steps:
        if each.config.strategy != STREAM:
            continue
        part, sampling = parts[each.component], each.sampling
        vram_spare, ram_spare = headroom(each.config.device)
        together = prefer == "balanced" and sampling is not None
        tried = []
        alone = each.config.batch if each.component == TEXT_ENCODER else 1
        for batch in [b for b in (1, 2, 4, 8) if b <= images] if together else [alone]:
            for resident in resident_choices(part, each.config):
                other = replace(each.config, batch=batch, resident_bytes=resident)
                need = predict(part, other)
                left = machine.ram_bytes - need.ram_bytes
                left -= need.vram_bytes if machine.unified else 0
                if left < ram_spare or need.vram_bytes > max(0, machine.vram_bytes - vram_spare):
                    continue
                jobs = workloads_of(request, cascade, each.component)
                tried.append(
                    predict_seconds(
                        part, other, jobs, machine.speeds, left, unified=machine.unified
                    )
                )
        assert each.estimate.seconds == min(tried)


def test_what_stays_in_place_does_not_push_the_file_out_of_the_cache() -> None:
    """In float32 weights take twice what their file does: at 12 GB most of it is better cached than
    kept, where reading is what a step waits for."""
    quick = replace(assumed("cpu"), paces=(Throughput("cpu", "float32", ANY, 1e15),))
    plain, roomy = (
        step(make_plan(replace(cpu(ram), rates=quick), ask(size=64)), STAGE_1) for ram in (12, 16)
    )
    assert plain.config.strategy == STREAM
    assert plain.config.resident_bytes < 3 * GB < roomy.config.resident_bytes
    assert roomy.estimate.seconds < plain.estimate.seconds
    # As it is on file, what stays takes no more than it would in the cache.
    assert step(make_plan(cpu(8, "avx512_bf16"), ask(size=64)), STAGE_1).config.resident_bytes > 0


def test_on_apple_what_is_on_the_gpu_leaves_less_for_the_files_cache() -> None:
    """Streams to an Apple GPU travel longer than to a card, and less stays: VRAM and RAM are one."""
    apple, nvidia = (
        step(make_plan(card(vram, 8, kind), ask(size=64)), STAGE_1)
        for kind, vram in LIKE_CARDS.items()
    )
    assert apple.config.strategy == nvidia.config.strategy == STREAM
    assert apple.config.resident_bytes <= nvidia.config.resident_bytes
    assert apple.estimate.seconds > nvidia.estimate.seconds


def test_the_encoder_comes_once_for_all_prompts() -> None:
    """One pass over T5's file serves any number of prompts, and the reason says so."""
    one, many = (
        step(make_plan(cpu(8), ask(prompts=prompts, size=64)), TEXT_ENCODER)
        for prompts in (("a",), tuple("abcdefgh"))
    )
    assert (one.config.strategy, one.config.resident_bytes) == (STREAM, 0)
    assert (one.config.batch, many.config.batch) == (2, 9)  # and the negative prompt
    assert replace(one, estimate=many.estimate).with_config(batch=9) == many
    assert many.estimate.seconds < 8 * one.estimate.seconds
    assert one.reason.endswith("layers are read from the file once")


def test_streaming_names_the_resident_share_and_what_did_not_fit() -> None:
    """The reason names the resident share, and the runner-up the RAM that a resident network needs."""
    stage = step(make_plan(cpu(8, "avx512_bf16"), ask(size=64)), STAGE_1)
    assert "5.3 GB resident, other layers are read from the file in every pass" in stage.reason
    assert re.fullmatch(
        r"resident bfloat16: \d+ min \d+ s, but needs 10\.3 GB of RAM, 8\.0 GB available",
        stage.instead_of,
    )
    small = step(make_plan(cpu(2.5, "avx512_bf16"), ask(size=64)), STAGE_1)
    assert "to spare; layers are read from the file in every pass" in small.reason


def test_a_pinned_stream_names_the_next_that_fits() -> None:
    """What the quickest of the pinned ways was taken instead of had no room, or is slower."""
    pins = {STAGE_1: Pin(STREAM)}
    roomy, large = (step(make_plan(cpu(ram), ask(size=64), pins=pins), STAGE_1) for ram in (64, 12))
    assert re.fullmatch(r"stream float32, 12\.9 GB resident: 1 h \d+ min", roomy.instead_of)
    assert re.fullmatch(
        r"stream float32, 15\.0 GB resident: 1 h \d+ min, but needs 18\.\d GB of RAM, "
        r"12\.0 GB available",
        large.instead_of,
    )
    encoder = step(make_plan(cpu(8), ask(size=64), pins={TEXT_ENCODER: Pin(STREAM)}), TEXT_ENCODER)
    assert (encoder.reason.split(";")[0], encoder.instead_of) == ("pinned", "")


def test_casting_at_every_pass_is_told_with_what_spares_it() -> None:
    """A UNet that streams in bfloat16 from other files on a CPU says how a copy of it is made."""
    words = "weights are cast in every pass unless you run `fetch --convert bf16`"
    plan = make_plan(cpu(3, "avx512_bf16"), ask(), prefer="balanced")
    assert words not in step(plan, TEXT_ENCODER).reason
    for component in catalog.IMAGE_STAGES:
        assert step(plan, component).config.strategy == STREAM
        assert words in step(plan, component).reason
    for machine in (cpu(5), card(3, 4)):
        plan = make_plan(machine, ask(size=64))
        assert step(plan, STAGE_1).config.strategy == STREAM
        assert words not in step(plan, STAGE_1).reason


def test_bfloat16_files_need_no_copy(tiny: Path, tmp_path: Path) -> None:
    """Of a cascade whose UNet is bfloat16 on file nothing is said of casting it."""
    casting = pytest.importorskip("lowmem_if.weights.files.convert_dtype")
    folder = Path(shutil.copytree(tiny, tmp_path / "cascade"))
    file = next(folder.glob("stage_1/unet/*.safetensors"))
    reasons = []
    for _ in range(2):
        plan = make_plan(
            cpu(8, "avx512_bf16"),
            ask(str(folder), size=64),
            pins={STAGE_1: Pin(STREAM, "bfloat16")},
        )
        reasons.append(step(plan, STAGE_1).reason)
        for _ in casting.cast_file(file, tmp_path / "cast.safetensors"):
            pass
        (tmp_path / "cast.safetensors").replace(file)
    assert "fetch --convert bf16" in reasons[0]
    assert "fetch --convert bf16" not in reasons[1]


def test_a_batch_that_had_to_be_smaller_says_so() -> None:
    """When only the batch was too large, what was given up is told apart from what was chosen."""
    plan = make_plan(card(4.2, 80), ask(images=8), prefer="balanced")
    stage = step(plan, STAGE_2)
    assert (stage.config.strategy, stage.config.batch) == (RESIDENT, 1)
    assert "batch" in stage.instead_of or "images" in stage.instead_of


def test_only_balanced_tiles_the_vae() -> None:
    """Tiles change pixels a little: balanced takes them where the whole picture has no room."""
    assert not step(make_plan(card(80, 80), ask(), prefer="balanced"), UPSCALER).config.vae_tiling
    tiled = step(make_plan(card(3.5, 32), ask("if-m"), prefer="balanced"), UPSCALER)
    assert tiled.config.vae_tiling
    error = refusal(card(3.5, 32), ask("if-m"))
    assert error is not None
    assert (error.component, error.nearest) == (
        UPSCALER,
        "Try --prefer balanced, or free 0.4 GB more VRAM.",
    )


def test_a_setting_that_lacks_both_tells_the_greater_lack() -> None:
    """Where VRAM and RAM are short at once, the figures are of what is missing most."""
    pins = {STAGE_1: Pin(SEQUENTIAL_OFFLOAD), TEXT_ENCODER: Pin(SEQUENTIAL_OFFLOAD)}
    for vram, ram, resource in ((0.9, 8, "RAM"), (0.1, 13.0, "VRAM")):
        error = refusal(card(vram, ram), ask(size=64), pins=pins)
        assert error is not None
        assert (error.component, error.resource) == (TEXT_ENCODER, resource)


# --- pins ---------------------------------------------------------------------------------------


@thorough
@given(machines, requests, preferences, pins)
def test_pins_are_kept_or_refused(
    machine: Machine, request: Request, prefer: str, pins: dict[str, Pin]
) -> None:
    """A pinned component has exactly the pinned strategy and type, or there is no plan at all."""
    try:
        plan = make_plan(machine, request, prefer=prefer, pins=pins)
    except (DoesNotFit, DeviceError, RequestError):
        return
    assert plan.pins == {component: str(pin) for component, pin in pins.items()}
    for each in plan.steps:
        if pin := pins.get(each.component):
            assert each.config.strategy == pin.strategy
            assert each.config.storage_dtype == (pin.storage or each.config.storage_dtype)
            on_the_cpu = each.component == POSTPROCESS or (
                machine.kind == "mps" and each.config.storage_dtype in ("int8", "nf4")
            )
            assert each.config.device == ("cpu" if on_the_cpu else machine.device)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@thorough
@given(machines, requests, preferences, pins)
def test_a_pin_changes_nothing_else(
    machine: Machine, request: Request, prefer: str, pins: dict[str, Pin]
) -> None:
    """Components that are not pinned are planned as without pins."""
    free = try_plan(machine, request, prefer=prefer)
    try:
        pinned = make_plan(machine, request, prefer=prefer, pins=pins)
    except (DoesNotFit, DeviceError, RequestError):
        return
    for before, after in zip(free.steps if free else (), pinned.steps, strict=False):
        if before.component not in pins:
            assert before == after


def test_a_pinned_float_is_also_computed_in() -> None:
    """Pinning float32 storage means float32 arithmetic; a quantised type computes in the machine's."""
    plan = make_plan(
        card(40, 40),
        ask(),
        pins={STAGE_1: Pin(RESIDENT, "float32"), TEXT_ENCODER: Pin(RESIDENT, "nf4")},
    )
    assert step(plan, STAGE_1).config.compute_dtype == "float32"
    assert step(plan, TEXT_ENCODER).config.compute_dtype == "float16"
    assert "pinned" in step(plan, STAGE_1).reason


@pytest.mark.parametrize(
    ("machine", "pins", "kind", "words"),
    [
        (
            cpu(64),
            {STAGE_1: Pin(SEQUENTIAL_OFFLOAD)},
            DeviceError,
            "stage_1=resident or stage_1=stream",
        ),
        (
            cpu(64),
            {UPSCALER: Pin(MODEL_OFFLOAD)},
            DeviceError,
            "upscaler=resident or upscaler=stream",
        ),
        (cpu(64), {STAGE_2: Pin(RESIDENT, "float16")}, DeviceError, "stage_2=resident:bfloat16"),
        (cpu(64), {STAGE_2: Pin(STREAM, "float16")}, DeviceError, "stage_2=stream:bfloat16"),
        (card(40, 64), {POSTPROCESS: Pin(STREAM)}, RequestError, "resident:float32"),
        (
            replace(card(40, 64), capability=(7, 0)),
            {TEXT_ENCODER: Pin(RESIDENT, "int8")},
            DeviceError,
            "resident:nf4",
        ),
        (card(40, 64), {POSTPROCESS: Pin(MODEL_OFFLOAD)}, RequestError, "resident:float32"),
        (card(40, 64), {POSTPROCESS: Pin(RESIDENT, "float16")}, RequestError, "resident:float32"),
    ],
)
def test_a_pin_that_the_device_cannot_keep_is_refused_with_one_that_it_can(
    machine: Machine, pins: dict[str, Pin], kind: type[Exception], words: str
) -> None:
    """Offloading and float16 on a CPU, 8 bits on an old card, a finish elsewhere: the error says so."""
    with pytest.raises(kind, match=words) as caught:
        make_plan(machine, ask(), pins=pins)
    assert "\n" not in str(caught.value)


def test_a_pin_without_room_is_not_overridden() -> None:
    """A pinned strategy that does not fit is a DoesNotFit, which says that it fits without the pin."""
    with pytest.raises(DoesNotFit) as caught:
        make_plan(card(7, 16), ask(size=64), pins={STAGE_1: Pin(RESIDENT)})
    assert caught.value.component == STAGE_1
    assert caught.value.nearest.startswith("Try it without the pins, or free ")


def test_a_pin_of_a_component_that_does_not_run_is_no_matter() -> None:
    """The same pins serve a small and a large picture."""
    plan = make_plan(card(16, 16), ask(size=64), pins={UPSCALER: Pin(MODEL_OFFLOAD)})
    assert plan.pins == {UPSCALER: "model_offload"}


# --- what does not fit --------------------------------------------------------------------------


@thorough
@given(machines, requests, preferences)
def test_a_refusal_carries_true_figures(machine: Machine, request: Request, prefer: str) -> None:
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
    nearest: str, request: Request, prefer: str, pins: Mapping[str, Pin]
) -> tuple[Request, str, Mapping[str, Pin]]:
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
    machine: Machine, request: Request, prefer: str, pins: dict[str, Pin]
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
    machine = cpu(2.7)
    assert try_plan(machine, ask("if-xl", size=256), prefer="balanced") is None
    assert try_plan(machine, ask("if-l", size=256)) is not None
    with pytest.raises(DoesNotFit) as caught:
        make_plan(machine, ask("if-xl", size=256))
    assert caught.value.nearest.startswith("Try --cascade if-l, or free ")


def test_a_smaller_preference_is_proposed_before_a_smaller_cascade() -> None:
    """What keeps the cascade is nearer than what gives it up."""
    with pytest.raises(DoesNotFit) as caught:
        make_plan(cpu(5), ask("if-l"))
    assert caught.value.nearest.startswith("Try --prefer balanced, or free ")
    with pytest.raises(DoesNotFit) as caught:
        make_plan(cpu(2.7), ask("if-xl", size=256), prefer="balanced")
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


# --- cascades on this disk ----------------------------------------------------------------------


def test_a_small_cascade_runs_in_float32(tiny: Path) -> None:
    """Exactness is cheap where weights are small: float32 throughout, on a card or a CPU."""
    for machine in (cpu(4, "avx512_bf16"), card(6, 8), card(6, 8, "mps")):
        plan = make_plan(machine, ask(str(tiny)))
        for each in plan.steps:
            assert (each.config.storage_dtype, each.config.compute_dtype) == ("float32", "float32")
            assert each.config.strategy == RESIDENT
        assert all(each.config.device == machine.device for each in plan.steps[:-1])


def test_a_folder_is_not_downloaded(tiny: Path) -> None:
    """What is on the disk costs no download; what is not costs each file once."""
    assert make_plan(cpu(8), ask(str(tiny))).download_bytes == 0
    plan = make_plan(card(16, 16), ask("if-m"))
    assert plan.download_bytes == sum(each.estimate.read_bytes for each in plan.steps)
    small = make_plan(card(16, 16), ask("if-m", size=64))
    assert small.download_bytes < plan.download_bytes


def test_the_8bit_encoder_downloads_the_8bit_file() -> None:
    """An int8 plan fetches 7.92 GB, a float16 one 11.54 GB."""
    machine = card(16, 16)
    eight = step(make_plan(machine, ask()), TEXT_ENCODER)
    sixteen = step(
        make_plan(machine, ask(), pins={TEXT_ENCODER: Pin(RESIDENT, "float16")}), TEXT_ENCODER
    )
    assert eight.estimate.read_bytes == pytest.approx(7.92 * GB, rel=0.005)
    assert sixteen.estimate.read_bytes == pytest.approx(11.54 * GB, rel=0.005)


@pytest.fixture
def only_8bit(tiny: Path, tmp_path: Path) -> Path:
    """A cascade in a folder that holds its text encoder as an 8-bit file alone."""
    numpy = pytest.importorskip("numpy")
    from safetensors.numpy import save_file

    folder = Path(shutil.copytree(tiny, tmp_path / "only 8-bit"))
    encoder = folder / "stage_1/text_encoder"
    for file in [*encoder.glob("*.safetensors"), *encoder.glob("*.index.*json")]:
        file.unlink()
    layer = "encoder.block.0.layer.0.SelfAttention.q"
    save_file(
        {
            f"{layer}.weight": numpy.zeros((64, 64), numpy.int8),
            f"{layer}.SCB": numpy.zeros(64, numpy.float32),
        },
        encoder / "model.8bit.safetensors",
    )
    return folder


@pytest.mark.parametrize(
    "machine", [cpu(8), card(8, 8), card(8, 8, "mps")], ids=lambda m: f"on {m.kind}"
)
@pytest.mark.parametrize("prefer", PREFERENCES)
def test_an_encoder_that_is_here_in_8_bits_only_is_planned_in_8_bits(
    only_8bit: Path, machine: Machine, prefer: str
) -> None:
    """8-bit weights cannot be had in another type, on any machine."""
    plan = make_plan(machine, ask(str(only_8bit)), prefer=prefer)
    encoder = step(plan, TEXT_ENCODER)
    assert (encoder.config.storage_dtype, encoder.config.strategy) == ("int8", RESIDENT)
    assert encoder.config.device in ("cpu", "cuda:0")
    assert plan.download_bytes == 0


@pytest.mark.parametrize("machine", [cpu(8), card(8, 8)], ids=lambda m: f"on {m.kind}")
def test_a_pin_that_leaves_the_type_open_takes_the_8_bits_that_are_here(
    only_8bit: Path, machine: Machine
) -> None:
    """`text_encoder=resident` says nothing of the type, so that of the only file is taken."""
    plan = make_plan(machine, ask(str(only_8bit)), pins={TEXT_ENCODER: Pin(RESIDENT)})
    encoder = step(plan, TEXT_ENCODER)
    assert (encoder.config.storage_dtype, encoder.config.device) == ("int8", machine.device)


def test_a_pin_for_weights_that_are_not_here_is_refused(only_8bit: Path) -> None:
    """Asking for 16 bits of an 8-bit file is told with the pin that works."""
    with pytest.raises(CheckpointError, match="text_encoder=resident:int8"):
        make_plan(cpu(8), ask(str(only_8bit)), pins={TEXT_ENCODER: Pin(RESIDENT, "bfloat16")})


def test_sampling_is_settled_by_the_cascade(tiny: Path) -> None:
    """A plan leaves no step, guidance or noise level to a default."""
    plan = make_plan(card(24, 24), ask("if-m", timesteps="fast27", steps=9))
    samplings = {each.component: each.sampling for each in plan.steps if each.sampling}
    assert [samplings[stage].count for stage in catalog.IMAGE_STAGES] == [27, 27, 9]
    assert {name: s.noise_level for name, s in samplings.items()} == {
        STAGE_1: None, STAGE_2: 250, UPSCALER: 100,
    }  # fmt: skip
    demo = make_plan(cpu(8), ask("demo"))
    assert step(demo, STAGE_1).sampling == demo.request.sampling.in_stage(
        STAGE_1, catalog.DEMO_DEFAULTS[STAGE_1]
    )


def test_a_cascade_that_is_none_is_told_before_anything_is_planned(tmp_path: Path) -> None:
    """Unknown names and broken folders end as errors of their own kind."""
    with pytest.raises(CascadeError, match="if-xxl"):
        make_plan(cpu(8), ask("if-xxl"))
    with pytest.raises(CascadeError):
        make_plan(cpu(8), ask(str(tmp_path)))


def test_a_broken_file_is_told_before_anything_is_planned(tiny: Path, tmp_path: Path) -> None:
    """A damaged weight file of the cascade asked for is a CheckpointError that names it."""
    broken = Path(shutil.copytree(tiny, tmp_path / "broken"))
    file = next(broken.glob("stage_2/unet/*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=re.escape(str(file))):
        make_plan(cpu(8), ask(str(broken)))
    assert make_plan(cpu(8), ask(str(broken), size=64))


# --- Apple ----------------------------------------------------------------------------------------


def test_a_pinned_8bit_encoder_runs_on_the_cpu_beside_an_apple_gpu() -> None:
    """bitsandbytes' int8 is not for Apple GPUs, so the demo's pin is kept on the CPU."""
    pins = {TEXT_ENCODER: Pin(RESIDENT, "int8")}
    encoder = step(make_plan(card(10, 16, "mps"), ask("demo"), pins=pins), TEXT_ENCODER)
    assert (encoder.config.storage_dtype, encoder.config.device, encoder.config.compute_dtype) == (
        "int8",
        "cpu",
        "float32",
    )


# --- imports ------------------------------------------------------------------------------------

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "bitsandbytes")


@pytest.mark.parametrize(
    "code",
    [
        "import lowmem_if",
        "import lowmem_if.planning.plan",
        "import lowmem_if as lm; lm.make_plan(lm.load_profile('colab-free').machine, "
        "lm.make_request('a', cascade='if-m', seed=1)).to_json()",
        "import lowmem_if as lm; lm.probe('cpu')",
    ],
    ids=["the package", "the planner", "planning", "probing the CPU"],
)
def test_deciding_imports_no_heavy_library(code: str, tmp_path: Path) -> None:
    """The package, a plan and a look at the CPU start without torch and its family."""
    code += f"; import sys; print([name for name in {HEAVY} if name in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] == "[]"


def test_a_picture_to_enlarge_that_does_not_fit_is_told_in_bytes(tmp_path: Path) -> None:
    """What would fit instead is sought among requests that there are: not every mode has every size."""
    Image.new("RGB", (512, 512)).save(picture := tmp_path / "own.png")
    request = make_request(("",), cascade="if-xl", mode="upscale", image=str(picture), seed=(1,))
    with pytest.raises(DoesNotFit) as caught:
        make_plan(card(1, 1), request)
    assert caught.value.component == UPSCALER
    assert "GB more" in caught.value.nearest


# --- where torch's allocator keeps what it has freed ----------------------------------------------


@pytest.mark.parametrize("fact", ["spills_vram", "keeps_reserve"])
@pytest.mark.parametrize("name", ["rtx-4060-8gb", "rtx-2060-6gb", "gtx-1660-6gb", "rtx-3060-12gb"])
def test_plans_have_room_for_the_allocators_reserve(name: str, fact: str) -> None:
    """On Windows, and wherever segments do not expand, no step holds more than there is."""
    machine = replace(load_profile(name).machine, spills_vram=False)
    machine = replace(machine, **{fact: True})  # type: ignore[arg-type]
    request = make_request(("x",), cascade="if-xl", seed=(1,))
    plan = make_plan(machine, request)
    parts = locate("if-xl", components=request.components).cascade.parts
    for each in plan.steps:
        held = predict(parts[each.component], each.config, reserve=True)
        assert each.estimate.vram_bytes == held.vram_bytes
        if each.config.device != "cpu":
            assert held.vram_bytes + headroom(each.config.device)[0] <= machine.vram_bytes
            turn = look_up_step(
                parts[each.component], each.component, each.config.strategy, each.config.storage_dtype,
                attention="fused", tiled=each.config.vae_tiling,
            )  # fmt: skip
            assert turn is not None
            assert turn.reserved_bytes <= machine.vram_bytes - headroom(each.config.device)[0]
