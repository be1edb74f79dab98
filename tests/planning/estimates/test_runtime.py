"""Predicted seconds: what grows with what, what overlaps, and which constants count."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_if.cascade.catalog import (
    POSTPROCESS,
    PUBLISHED,
    STAGE_1,
    STAGE_2,
    TEXT_ENCODER,
    UPSCALER,
)
from lowmem_if.cascade.parts import Module, Part, Weights
from lowmem_if.cascade.strategies import (
    MODEL_OFFLOAD,
    RESIDENT,
    SEQUENTIAL_OFFLOAD,
    STRATEGIES,
    STREAM,
)
from lowmem_if.hardware.machine import Machine
from lowmem_if.hardware.speeds import (
    ACCELERATOR,
    ANY,
    CPU,
    Speeds,
    Throughput,
    accelerator_paces,
    assumed,
)
from lowmem_if.planning.estimates.execution import (
    RAM_STRIPS,
    STRIPS,
    WHOLE,
    ExecutionConfig,
)
from lowmem_if.planning.estimates.flops import pass_flops
from lowmem_if.planning.estimates.runtime import predict_seconds
from lowmem_if.planning.estimates.weight_bytes import bytes_a_pass
from lowmem_if.planning.estimates.workload import Workload
from lowmem_if.planning.plan import make_plan
from lowmem_if.request.build import make_request
from lowmem_if.request.sampling import Sampling

GB = 10**9
GUIDED = Sampling(50, None, 7.0, None)
XL = PUBLISHED["if-xl"]

ROUND = Speeds(
    disk_bytes=1e9, cached_bytes=2e9, fill_bytes=4e9, bus_bytes=8e9, pageable_bytes=4e9,
    launch_s=0.01, start_s=5, origin="round figures",
    paces=(Throughput(CPU, "float32", ANY, 0.1e12), *accelerator_paces(10e12, 5e12)),
)  # fmt: skip


def setting(component: str, strategy: str = RESIDENT, **changes: object) -> ExecutionConfig:
    base = ExecutionConfig(component, strategy, "float16", "float16", 1, "cuda:0")
    return replace(base, **changes)  # type: ignore[arg-type]


def seconds(
    each: ExecutionConfig,
    job: Workload,
    rates: Speeds = ROUND,
    left: int = 64 * GB,
    *,
    unified: bool = False,
) -> float:
    part = XL.parts[each.component]
    return predict_seconds(part, each, (job,), rates, left, unified=unified)


def test_a_resident_stage_loads_once_and_computes_every_step() -> None:
    """I-XL: 8.6 GB over a 1 GB/s disk, then 50 guided steps of 5.76e12 operations at 10e12 a second."""
    expected = 0.5 + 8.61 + 50 * 0.5758
    assert seconds(setting(STAGE_1), Workload(1, 1, GUIDED)) == pytest.approx(expected, abs=0.2)


def test_what_moves_adds_up_and_what_streams_overlaps() -> None:
    """Leaves that move are waited for (8.6 GB at 4 GB/s a step); a stream hides behind computing."""
    job = Workload(1, 1, GUIDED)
    resident, moving = (
        seconds(setting(STAGE_1), job),
        seconds(setting(STAGE_1, SEQUENTIAL_OFFLOAD), job),
    )
    assert moving - resident == pytest.approx(50 * 8.61 / 4, rel=0.02)
    half = seconds(setting(STAGE_1, STREAM, resident_bytes=int(6.5e9)), job)
    assert resident < half < 1.2 * resident
    none = seconds(setting(STAGE_1, STREAM), job)
    assert none == pytest.approx(0.5 + 8.61 + 49 * 8.61 / 4, rel=0.02)


def test_whole_modules_move_once_a_picture() -> None:
    """Model offload costs the upscaler its 1.7 GB over the bus for each picture, not for each step."""
    job = Workload(1, 3, GUIDED)
    more = seconds(setting(UPSCALER, MODEL_OFFLOAD), job) - seconds(setting(UPSCALER), job)
    assert more == pytest.approx(3 * 1.738 / 4, abs=0.2)


def test_on_a_cpu_casting_takes_from_computing() -> None:
    """There every pass of a stream adds what it casts; what has the right type on file adds nothing."""
    job, on_cpu = (
        Workload(1, 1, GUIDED),
        {"device": "cpu", "storage_dtype": "float32", "compute_dtype": "float32"},
    )
    resident = seconds(setting(STAGE_1, **on_cpu), job)
    streamed = seconds(setting(STAGE_1, STREAM, **on_cpu), job)
    assert streamed > resident + 40 * 8.61 / 2
    unet = XL.parts[STAGE_1].modules[0]
    copy = replace(XL.parts[STAGE_1], modules=(replace(unet, is_bfloat16=True),))
    as_is = setting(
        STAGE_1, STREAM, device="cpu", storage_dtype="bfloat16", compute_dtype="bfloat16"
    )
    rates = replace(ROUND, paces=(Throughput(CPU, "bfloat16", ANY, 0.1e12),))
    saved = predict_seconds(XL.parts[STAGE_1], as_is, (job,), rates, 64 * GB, unified=False)
    saved -= predict_seconds(copy, as_is, (job,), rates, 64 * GB, unified=False)
    assert saved == pytest.approx(50 * 8.61 / 2, rel=0.01)


def test_the_encoder_reads_its_file_once_for_all_texts() -> None:
    """Twenty texts stream in one pass; moving leaf by leaf they would take twenty."""
    one, many = (
        [
            seconds(setting(TEXT_ENCODER, STREAM, batch=n), Workload(n, n)),
            seconds(setting(TEXT_ENCODER, SEQUENTIAL_OFFLOAD), Workload(n, n)),
        ]
        for n in (1, 20)
    )
    assert many[0] == pytest.approx(one[0], abs=0.1)
    assert many[1] - one[1] == pytest.approx(19 * 11.54 / 4, rel=0.1)


def test_an_8_bit_file_is_read_instead_of_quantised() -> None:
    """The published int8 encoder is 7.92 GB to read; from 16 bits a CPU must quantise first."""
    job = Workload(1, 1)
    there = setting(TEXT_ENCODER, storage_dtype="int8", compute_dtype="float32", device="cpu")
    local = replace(XL.parts[TEXT_ENCODER], eight_bit_file_bytes=0)
    made = predict_seconds(local, there, (job,), ROUND, 64 * GB, unified=False)
    assert made - seconds(there, job) == pytest.approx(11.54 - 7.92 + 2 * 3.62, abs=0.2)


def test_apple_crosses_no_bus() -> None:
    """With a bus of a byte a second nothing changes where memory is one."""
    slow = replace(ROUND, bus_bytes=1.0, pageable_bytes=1.0)
    for way in (RESIDENT, STREAM):
        each = setting(STAGE_1, way, device="mps")
        job = Workload(1, 1, GUIDED)
        assert seconds(each, job, slow, unified=True) == seconds(each, job, unified=True)


def test_unguided_pictures_are_half_the_work() -> None:
    """Guidance computes each step twice."""
    alone = Sampling(50, None, 1.0, None)
    steps = [seconds(setting(STAGE_1), Workload(1, 1, way)) for way in (GUIDED, alone)]
    assert steps[0] - steps[1] == pytest.approx(25 * 0.5758, abs=0.2)


def test_strips_cross_the_bus_only_if_ram_keeps_them() -> None:
    """Nearly twenty times the largest activation: 21 GB. A CPU is a little faster in strips."""
    job = Workload(1, 1, GUIDED)
    whole, strips, from_ram = (
        seconds(setting(UPSCALER, decoding=way), job) for way in (WHOLE, STRIPS, RAM_STRIPS)
    )
    assert whole == strips
    assert from_ram - strips == pytest.approx(19.5 * 2**30 / ROUND.pageable_bytes, rel=0.05)
    on_cpu = setting(UPSCALER, device="cpu", storage_dtype="float32", compute_dtype="float32")
    assert seconds(replace(on_cpu, decoding=STRIPS), job) < seconds(on_cpu, job)


def test_the_finish_is_a_look_and_a_file_for_each_picture() -> None:
    """The safety checker's 0.16e12 operations and a PNG."""
    each = setting(POSTPROCESS, storage_dtype="float32", compute_dtype="float32", device="cpu")
    many, one = (seconds(each, Workload(1, n)) for n in (10, 1))
    assert many - one == pytest.approx(9 * (1.56 + 0.2), abs=0.2)


@settings(derandomize=True, database=None, deadline=None, max_examples=300)
@given(
    st.sampled_from([STAGE_1, STAGE_2, UPSCALER]),
    st.sampled_from(STRATEGIES),
    st.sampled_from(["cpu", "cuda:0"]),
    st.tuples(*[st.integers(0, 12 * GB)] * 2),
    st.tuples(*[st.integers(1, 9)] * 2),
    st.integers(1, 8),
)
def test_seconds_grow_with_the_work_and_fall_with_the_memory(
    component: str,
    strategy: str,
    device: str,
    left: tuple[int, int],
    images: tuple[int, int],
    batch: int,
) -> None:
    """More pictures never take less, more memory for the cache never more."""
    each = setting(component, strategy, device=device, batch=batch)

    def of(left: int, images: int) -> float:
        return seconds(each, Workload(1, images, GUIDED), ROUND, left)

    quick = of(max(left), min(images))
    assert 0 < quick <= of(min(left), min(images))
    assert quick <= of(max(left), max(images))


@settings(derandomize=True, database=None, deadline=None, max_examples=200)
@given(st.sampled_from([STAGE_1, STAGE_2]), st.tuples(*[st.integers(0, 9 * GB)] * 2))
def test_the_more_stays_the_less_comes(component: str, stays: tuple[int, int]) -> None:
    """Of a stream, what stays in place does not come again; it never costs time by itself."""
    less, more = (setting(component, STREAM, resident_bytes=size) for size in sorted(stays))
    part = XL.parts[component]
    assert bytes_a_pass(part, more) <= bytes_a_pass(part, less)
    assert seconds(more, Workload(1, 1, GUIDED)) <= seconds(less, Workload(1, 1, GUIDED))


def test_the_most_particular_pace_counts() -> None:
    """A component's own pace before any component's, its type before the slowest of the place."""
    rates = replace(
        ROUND,
        paces=(
            Throughput(ACCELERATOR, "float16", STAGE_1, 3e12),
            Throughput(ACCELERATOR, "float16", ANY, 2e12),
            Throughput(ACCELERATOR, "float32", ANY, 1e12),
        ),
    )
    assert rates.flops_per_s(ACCELERATOR, STAGE_1, "float16") == 3e12
    assert rates.flops_per_s(ACCELERATOR, STAGE_2, "float16") == 2e12
    assert rates.flops_per_s(ACCELERATOR, STAGE_2, "bfloat16") == 1e12
    assert rates.flops_per_s(CPU, STAGE_2, "float32") == 1e12
    newer = rates.with_paces((Throughput(ACCELERATOR, "float16", STAGE_1, 9e12),), "again")
    assert newer.flops_per_s(ACCELERATOR, STAGE_1, "float16") == 9e12
    assert len(newer.paces) == 3


@pytest.mark.parametrize("cascade", sorted(PUBLISHED))
def test_networks_of_no_catalogue_are_counted_nearly_right(cascade: str) -> None:
    """By width and pixels alone the published UNets come out within 8 % of what was counted."""
    for component in (STAGE_1, STAGE_2, UPSCALER):
        for module in PUBLISHED[cascade].parts[component].modules:
            if module.folder == "text_encoder":
                continue
            stranger = replace(module, weights=Weights(module.weights.parameters + 1))
            assert pass_flops(component, stranger) == pytest.approx(
                pass_flops(component, module), rel=0.09
            )


def test_every_class_of_device_has_constants() -> None:
    """An unknown machine is planned for with what is assumed of its class, and says so."""
    for kind in ("cpu", "cuda", "xpu", "mps"):
        rates = assumed(kind)
        assert kind in rates.origin.lower()
        assert min(rates.disk_bytes, rates.cached_bytes, rates.fill_bytes) > 0
    old, new = assumed("cuda", (6, 1)), assumed("cuda", (8, 6))
    assert old.flops_per_s(ACCELERATOR, ANY, "float16") < new.flops_per_s(
        ACCELERATOR, ANY, "float16"
    )


def test_where_nothing_can_be_pinned_streams_take_the_slow_bus() -> None:
    """Under WSL next to nothing can be pinned: a stream to the card is planned at the unpinned rate."""
    machine = Machine(
        name="made up", device="cuda:0", device_name="made up", vram_bytes=7 * GB,
        vram_total_bytes=8 * GB, ram_bytes=12 * GB, ram_total_bytes=16 * GB,
        disk_free_bytes=100 * GB, compute_dtype="float16", compute_dtype_reason="made up",
        rates=replace(ROUND, cached_bytes=1e12, disk_bytes=1e12),
    )  # fmt: skip
    request = make_request(("a",), cascade="if-xl", seed=(1,), size=64)
    free, walled = (
        make_plan(replace(machine, pinned_bytes=limit), request).step(STAGE_1).estimate.seconds
        for limit in (None, 0)
    )
    assert free < walled


def test_a_plan_is_made_in_a_fraction_of_a_second() -> None:
    """Under 0.3 s once everything is imported: the best of three, for machines are busy."""
    machine = Machine(
        name="made up", device="cuda:0", device_name="made up", vram_bytes=8 * GB,
        vram_total_bytes=8 * GB, ram_bytes=12 * GB, ram_total_bytes=16 * GB,
        disk_free_bytes=100 * GB, compute_dtype="float16", compute_dtype_reason="made up",
    )  # fmt: skip
    request = make_request(tuple("abcdefgh"), cascade="if-xl", seed=(1,), images=8)
    taken = []
    for _ in range(3):
        begun = time.perf_counter()
        make_plan(machine, request, prefer="balanced")
        taken.append(time.perf_counter() - begun)
    assert min(taken) < 0.3


def test_a_network_without_width_takes_at_least_its_launches() -> None:
    """Where a configuration tells no width, a step still takes what starting it takes."""
    part = Part("stage_1", None, (Module("unet", Weights(1000), 2000),))
    each = setting(STAGE_1)
    assert (
        predict_seconds(part, each, (Workload(1, 1, GUIDED),), ROUND, GB, unified=False)
        >= 50 * 0.01
    )
