"""What each component is offered: strategies, number types, batches and tiles for every machine."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from lora_files import peft, random_lora, write
from machines import (
    GB,
    ask,
    card,
    cpu,
    drawn_plans,
    drawn_steps,
    machines,
    pins,
    preferences,
    refusal,
    requests,
    step,
    thorough,
)

from lowmem_if.cascade import catalog
from lowmem_if.cascade.catalog import POSTPROCESS, STAGE_1, STAGE_2, TEXT_ENCODER, UPSCALER
from lowmem_if.cascade.locate import locate
from lowmem_if.cascade.strategies import (
    MODEL_OFFLOAD,
    PREFERENCES,
    QUANTISED,
    RESIDENT,
    SEQUENTIAL_OFFLOAD,
    STREAM,
    Pin,
)
from lowmem_if.errors import (
    CheckpointError,
    DeviceError,
    DoesNotFit,
    RequestError,
)
from lowmem_if.hardware.machine import Machine
from lowmem_if.hardware.speeds import ANY, Throughput, assumed
from lowmem_if.planning.candidates import configs_for
from lowmem_if.planning.estimates.execution import RAM_STRIPS, STRIPS, WHOLE
from lowmem_if.planning.estimates.memory import headroom, predict
from lowmem_if.planning.estimates.runtime import predict_seconds
from lowmem_if.planning.estimates.weight_bytes import resident_choices
from lowmem_if.planning.estimates.workload import workloads_of
from lowmem_if.planning.plan import make_plan
from lowmem_if.request.request import Request

pytestmark = pytest.mark.usefixtures("nothing_downloaded")


def test_exact_draws_one_image_at_a_time_in_the_machines_own_type() -> None:
    """Under `exact` memory decides where weights live, never in which type a stage draws."""
    exact = [(drawn, each) for drawn, each in drawn_steps() if drawn.prefer == "exact"]
    assert len(exact) > 100
    for drawn, each in exact:
        # Texts are encoded one by one in any case.
        assert each.config.batch == 1 or each.component == TEXT_ENCODER
        assert each.config.decoding == WHOLE
        if each.component in catalog.IMAGE_STAGES:
            assert each.config.storage_dtype == each.config.compute_dtype
            small = each.component == STAGE_1 and drawn.request.cascade == "if-m"
            assert each.config.storage_dtype == drawn.machine.compute_dtype or small
        assert each.config.storage_dtype != "nf4"


@pytest.mark.parametrize(("images", "batch"), [(1, 1), (2, 2), (3, 2), (5, 4), (8, 8), (9, 8)])
def test_balanced_draws_images_together_as_memory_allows(images: int, batch: int) -> None:
    """With plenty of memory the batch is the largest power of two up to eight; exact keeps to one."""
    request = ask(images=images)
    balanced = make_plan(card(80, 80), request, prefer="balanced")
    assert step(balanced, STAGE_2).config.batch == batch
    assert step(make_plan(card(80, 80), request), STAGE_2).config.batch == batch
    assert step(make_plan(card(80, 80), request, prefer="exact"), STAGE_2).config.batch == 1
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


def test_nothing_ever_computes_in_float16_on_a_cpu() -> None:
    """A step on the CPU, for whatever reason it is there, has a type that CPUs are fast in."""
    for _, each in drawn_steps():
        if each.config.device == "cpu":
            assert "float16" not in (each.config.storage_dtype, each.config.compute_dtype)


def test_a_cpu_never_offloads() -> None:
    """Without an accelerator every component is resident or streams on the CPU and takes no VRAM."""
    on_cpus = [each for drawn, each in drawn_steps() if drawn.machine.kind == "cpu"]
    assert len(on_cpus) > 100
    for each in on_cpus:
        assert each.config.device == "cpu"
        assert each.config.strategy in (RESIDENT, STREAM)
        assert each.estimate.vram_bytes == 0


def test_the_finish_is_always_on_the_cpu() -> None:
    """Safety checker and watermark run in float32 on the CPU, where the pictures are."""
    for plan in filter(None, (drawn.plan for drawn in drawn_plans())):
        finish = plan.steps[-1]
        assert (finish.component, finish.config.device, finish.config.strategy) == (
            POSTPROCESS,
            "cpu",
            RESIDENT,
        )
        assert (finish.config.storage_dtype, finish.config.compute_dtype) == ("float32", "float32")


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
    plan = make_plan(card(vram, ram), ask("if-m"), prefer="exact")
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


@pytest.mark.parametrize(
    ("component", "ram", "batch", "resident"),
    [(STAGE_1, 2.6, 4, False), (STAGE_1, 9, 8, True), (STAGE_2, 2.6, 2, True)],
)
def test_a_stream_takes_the_batch_and_the_residents_that_spare_most_reading(
    component: str, ram: float, batch: int, resident: bool
) -> None:
    """Images share passes in stage 1; in stage 2, where each takes a quarter of the weights' memory,
    only two do and most weights stay."""
    request = ask(images=8)
    stage = step(make_plan(cpu(ram, "avx512_bf16"), request, prefer="faithful"), component)
    assert (stage.config.strategy, stage.config.batch, stage.config.resident_bytes > 0) == (
        STREAM,
        batch,
        resident,
    )


@thorough
@given(machines, requests, preferences, pins)
def test_what_streams_is_the_quickest_way_to_stream_that_fits(
    machine: Machine, request: Request, prefer: str | None, pins: dict[str, Pin]
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
        together = prefer != "exact" and sampling is not None
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
                jobs = workloads_of(plan.request, cascade, each.component)
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
    assert plain.config.resident_bytes < 5 * GB < roomy.config.resident_bytes
    assert roomy.estimate.seconds < plain.estimate.seconds
    # As it is on file, what stays takes no more than it would in the cache.
    assert step(make_plan(cpu(8, "avx512_bf16"), ask(size=64)), STAGE_1).config.resident_bytes > 0


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


def test_the_vae_decodes_in_strips_from_faithful_on() -> None:
    """Only where the whole picture has no room; where a card has none for strips either, RAM has."""
    roomy = step(make_plan(card(80, 80), ask(), prefer="faithful"), UPSCALER)
    assert roomy.config.decoding == WHOLE
    strips, from_ram = (
        step(make_plan(card(vram, 32), ask("if-m"), prefer="faithful"), UPSCALER)
        for vram in (3.5, 2.0)
    )
    assert (strips.config.decoding, from_ram.config.decoding) == (STRIPS, RAM_STRIPS)
    assert "VAE in strips" in strips.reason
    error = refusal(card(3.5, 32), ask("if-m"), prefer="exact")
    assert error is not None
    assert (error.component, error.nearest) == (
        UPSCALER,
        "Try --prefer faithful, or free 0.4 GB more VRAM.",
    )


def test_a_cpu_decodes_in_strips_wherever_it_may() -> None:
    """They are quicker there, and lighter."""
    ways = {
        prefer: step(make_plan(cpu(64), ask(), prefer=prefer), UPSCALER) for prefer in PREFERENCES
    }
    assert ways["exact"].config.decoding == WHOLE
    assert {ways[prefer].config.decoding for prefer in PREFERENCES[1:]} == {STRIPS}
    assert ways["faithful"].estimate.ram_bytes < ways["exact"].estimate.ram_bytes


def test_a_small_cascade_runs_in_float32(tiny: Path) -> None:
    """Exactness is cheap where weights are small: float32 throughout, on a card or a CPU."""
    for machine in (cpu(4, "avx512_bf16"), card(6, 8), card(6, 8, "mps")):
        plan = make_plan(machine, ask(str(tiny)))
        for each in plan.steps:
            assert (each.config.storage_dtype, each.config.compute_dtype) == ("float32", "float32")
            assert each.config.strategy == RESIDENT
        assert all(each.config.device == machine.device for each in plan.steps[:-1])


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


# --- 8-bit and 4-bit UNets


@pytest.mark.parametrize("component", [STAGE_1, STAGE_2, UPSCALER])
def test_8_bit_unets_are_offered_from_balanced_on(component: str) -> None:
    """They change the numbers, so no stricter level has them; 4 bits are only pinned."""
    location = locate("if-xl")
    offered = {
        prefer: {
            config.storage_dtype
            for config in configs_for(card(16, 16), ask(), location, component, prefer, None)
        }
        for prefer in PREFERENCES
    }
    assert offered == {
        "exact": {"float16"}, "faithful": {"float16"},
        "balanced": {"float16", "int8"}, "fast": {"float16", "int8"},
    }  # fmt: skip


def test_small_unets_stay_as_they_are() -> None:
    """The demo's UNets are a few megabytes in float32: 8 bits would save nothing."""
    for each in make_plan(cpu(2), ask("demo"), prefer="balanced").steps:
        assert each.config.storage_dtype == "float32"


@pytest.mark.parametrize(
    ("machine", "resource"),
    [(card(5.6, 10), "vram_bytes"), (cpu(7, "avx512_bf16"), "ram_bytes")],
)
def test_the_largest_unet_stays_in_8_bits_on_a_6_gb_card_and_an_8_gb_laptop(
    machine: Machine, resource: str
) -> None:
    """In 16 bits it would have to stream; half and a quarter of the weights' bytes are saved."""
    request = ask(size=64)
    needed = {
        storage: getattr(
            step(make_plan(one, request, pins={STAGE_1: Pin(RESIDENT, storage)}), STAGE_1).estimate,
            resource,
        )
        for storage, one in (
            ("int8", machine), ("int4", machine), ("bfloat16", replace(
                machine, ram_bytes=64 * GB, vram_bytes=machine.vram_bytes and 64 * GB)),
        )
    }  # fmt: skip
    assert needed["bfloat16"] - needed["int8"] == pytest.approx(4.3e9 - 0.28e9, rel=0.05)
    assert needed["int8"] - needed["int4"] == pytest.approx(4.3e9 * (1 - 9 / 16), rel=0.05)


def test_an_8_bit_unet_is_never_compiled() -> None:
    """Its weights move with every layer, which compiled code does not allow."""
    request, machine = ask(compile=True, images=64, size=64), card(24, 24)
    machine = replace(machine, capability=(8, 6))
    kept = {"float16": True, "int8": False}
    for storage, compiles in kept.items():
        plan = make_plan(machine, request, pins={STAGE_1: Pin(RESIDENT, storage)})
        assert (step(plan, STAGE_1).config.speedup > 1) is compiles
    assert "not compiled: 8-bit and 4-bit weights" in step(plan, STAGE_1).reason


def test_a_lora_is_merged_into_kept_8_bit_weights_only(tiny: Path, tmp_path: Path) -> None:
    """A stream of 8-bit numbers has no exact ones to add to; the error gives two ways out."""
    lora = write(tmp_path / "lora.safetensors", peft(random_lora(tiny, "stage_1")))
    request = ask(str(tiny), size=64, lora=f"{lora}")
    with pytest.raises(RequestError, match=r"stage_1=resident:int8, or stream another type"):
        make_plan(cpu(8), request, pins={STAGE_1: Pin(STREAM, "int8")})
    kept = step(make_plan(cpu(8), request, pins={STAGE_1: Pin(RESIDENT, "int8")}), STAGE_1)
    assert kept.config.merge_bytes > 0
