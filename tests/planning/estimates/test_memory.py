"""Predicted bytes: what the libraries store, what was measured, and what must grow with what."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lowmem_if.cascade.catalog import (
    COMPONENTS,
    POSTPROCESS,
    PUBLISHED,
    STAGE_1,
    STAGE_2,
    TEXT_ENCODER,
    UPSCALER,
)
from lowmem_if.cascade.parts import Module, Part, Weights
from lowmem_if.cascade.strategies import (
    FLOATS,
    MODEL_OFFLOAD,
    QUANTISED,
    RESIDENT,
    STRATEGIES,
    STREAM,
)
from lowmem_if.planning.estimates.activations import TEXTS_A_PASS
from lowmem_if.planning.estimates.execution import (
    RAM_STRIPS,
    STRIPS,
    WHOLE,
    ExecutionConfig,
)
from lowmem_if.planning.estimates.memory import PROCESS_RAM_BYTES, headroom, predict
from lowmem_if.planning.estimates.memory_table import look_up, look_up_step, read_table
from lowmem_if.planning.estimates.weight_bytes import in_place_bytes, resident_choices, stored_bytes

MB = 10**6

cascades = st.sampled_from(sorted(PUBLISHED))
components = st.sampled_from(COMPONENTS)
floats = st.sampled_from(FLOATS)
batches = st.integers(1, 8)
decodings = st.sampled_from([WHOLE, STRIPS, RAM_STRIPS])


def part(cascade: str, component: str) -> Part:
    return PUBLISHED[cascade].parts[component]


def setting(component: str, **changes: object) -> ExecutionConfig:
    """A component resident on a card, in float16, one image."""
    base = ExecutionConfig(component, RESIDENT, "float16", "float16", 1, "cuda:0")
    return replace(base, **changes)  # type: ignore[arg-type]


def in_float(component: str, storage: str, **changes: object) -> ExecutionConfig:
    return setting(component, storage_dtype=storage, compute_dtype=storage, **changes)


# --- weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("storage", "compute", "size"),
    [
        ("float32", "float32", 4 * (100 + 64_000 + 1000)),
        ("float16", "float16", 2 * (100 + 64_000) + 4 * 1000),  # `wo` stays in float32
        ("bfloat16", "bfloat16", 2 * (100 + 64_000 + 1000)),
        ("int8", "float16", 64_000 + 4 * 80 + 4 * 1000 + 2 * 100),
        ("int8", "bfloat16", 64_000 + 4 * 80 + 2 * 1000 + 2 * 100),
        ("int8", "float32", 64_000 + 4 * 80 + 4 * 1000 + 4 * 100),
        ("nf4", "float16", 32_000 + 4 * 1000 + 4 * 1000 + 2 * 100),
        ("nf4", "float32", 32_000 + 4 * 1000 + 4 * 1000 + 4 * 100),
    ],
)
def test_weights_are_counted_by_what_a_storage_does_with_them(
    storage: str, compute: str, size: int
) -> None:
    """Quantised layers with their scales, `wo` as transformers keeps it, the rest as it computes."""
    weights = Weights(other=100, linear=64_000, kept=1000, linear_rows=80)
    assert stored_bytes(weights, storage, compute) == size


def test_quantised_layers_take_what_bitsandbytes_stores() -> None:
    """One float32 scale a row for int8 and one for 64 numbers for nf4 is what the library keeps."""
    bnb = pytest.importorskip("bitsandbytes")
    rows, columns = 512, 256
    weights = Weights(other=0, linear=rows * columns, linear_rows=rows)

    def size(tensor: object) -> int:
        return tensor.numel() * tensor.element_size()  # type: ignore[attr-defined]

    eight = bnb.nn.Linear8bitLt(columns, rows, bias=False, has_fp16_weights=False).to("cpu").weight
    assert stored_bytes(weights, "int8", "float16") == size(eight.data) + size(eight.SCB)
    # transformers' BitsAndBytesConfig compresses no statistics unless told to.
    four = bnb.nn.Linear4bit(
        columns, rows, bias=False, quant_type="nf4", compress_statistics=False
    ).to("cpu")
    stored = size(four.weight.data) + size(four.weight.quant_state.absmax)
    assert stored_bytes(weights, "nf4", "float16") == stored


@pytest.mark.parametrize("compute", FLOATS)
def test_smaller_number_types_take_less(compute: str) -> None:
    """nf4 < int8 < 16 bits < 32 bits, for the text encoder."""
    weights = part("if-xl", TEXT_ENCODER).modules[0].weights
    sizes = [stored_bytes(weights, storage, compute) for storage in ("nf4", "int8")]
    sizes += [stored_bytes(weights, "bfloat16", "bfloat16")]
    sizes += [stored_bytes(weights, "float16", "float16")]
    sizes += [stored_bytes(weights, "float32", "float32")]
    assert sizes[0] < sizes[1]
    assert sizes[2:] == sorted(sizes[2:])
    assert sizes[1] < sizes[2]


# --- peaks that were measured -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cascade", "component", "working"),
    [("if-xl", STAGE_1, 173_918_976), ("if-xl", STAGE_2, 587_612_800)],
)
def test_activations_of_the_unets_are_those_of_the_dry_runs(
    cascade: str, component: str, working: int
) -> None:
    """Beside its weights a UNet takes what the dry run of the real one took; what the pipeline holds and
    torch's allocator leaves unused comes on top, up to 2 %. (The figure for II-L was that of a network
    of other widths until the real one was simulated.)"""
    unet = part(cascade, component).modules[0]
    predicted = predict(part(cascade, component), setting(component)).vram_bytes
    weights = stored_bytes(unet.weights, "float16", "float16")
    assert weights + working <= predicted <= 1.02 * (weights + working)


def test_the_upscalers_peak_is_its_vae_in_float32() -> None:
    """The VAE decodes in float32 (3,222,274,048 bytes in the dry run); in strips from RAM a tenth."""
    x4 = part("if-xl", UPSCALER)
    weights = sum(stored_bytes(m.weights, "float16", "float16") for m in x4.modules)
    vae = next(m for m in x4.modules if m.folder == "vae").weights.parameters
    whole = predict(x4, setting(UPSCALER)).vram_bytes - weights
    assert whole == pytest.approx(3_222_274_048 + 2 * vae, rel=0.03)
    strips = predict(x4, setting(UPSCALER, decoding=RAM_STRIPS)).vram_bytes - weights
    # Then the UNet's 1,023 MB are the peak, while the VAE is in 16 bits, as the dry run has it.
    assert strips == pytest.approx(1_023_419_392, rel=0.05)


def test_a_moved_vae_decodes_in_float32_too() -> None:
    """When whole modules move, the VAE's weights stand on the card in float32 while it decodes."""
    x4 = part("if-xl", UPSCALER)
    vae = next(m for m in x4.modules if m.folder == "vae").weights.parameters
    moved = predict(x4, setting(UPSCALER, strategy=MODEL_OFFLOAD)).vram_bytes
    assert moved >= 0.99 * 3_222_274_048 + 4 * vae


# --- what must hold -----------------------------------------------------------------------------


@settings(derandomize=True, database=None, deadline=None, max_examples=200)
@given(cascades, components, floats, st.sampled_from(STRATEGIES), batches, batches, decodings)
def test_a_larger_batch_never_takes_less(
    cascade: str, component: str, dtype: str, strategy: str, one: int, other: int, decoding: str
) -> None:
    """Neither VRAM nor RAM shrinks when more images are drawn together, on a card or a CPU."""
    small, large = sorted((one, other))
    for device in ("cuda:0", "cpu"):
        base = in_float(component, dtype, strategy=strategy, device=device, decoding=decoding)
        less = predict(part(cascade, component), replace(base, batch=small))
        more = predict(part(cascade, component), replace(base, batch=large))
        assert less.vram_bytes <= more.vram_bytes
        assert less.ram_bytes <= more.ram_bytes
        assert less.read_bytes == more.read_bytes


@pytest.mark.parametrize("component", [TEXT_ENCODER, STAGE_1, STAGE_2])
def test_more_images_take_more(component: str) -> None:
    """Eight really are predicted to take more than one: pictures, or texts that share a pass."""
    base = setting(component)
    if component == TEXT_ENCODER:
        base = in_float(component, "float16", strategy=STREAM)
    one, eight = (predict(part("if-l", component), replace(base, batch=n)) for n in (1, 8))
    assert eight.vram_bytes > one.vram_bytes
    assert eight.ram_bytes == one.ram_bytes


@pytest.mark.parametrize("cascade", PUBLISHED)
@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_offloading_trades_vram_for_ram(cascade: str, component: str, dtype: str) -> None:
    """Leaf by leaf takes the least VRAM, streaming the least RAM, module by module no more than all."""
    resident, model, leaves, streaming = (
        predict(part(cascade, component), in_float(component, dtype, strategy=strategy))
        for strategy in STRATEGIES
    )
    assert leaves.vram_bytes < streaming.vram_bytes < resident.vram_bytes
    assert streaming.ram_bytes < model.ram_bytes
    # Dry runs: of a single network the allocator leaves up to 2.1 MB more when its hook moves it ...
    assert leaves.vram_bytes < model.vram_bytes <= resident.vram_bytes + 2_200_000
    # ... and whole modules go back to RAM as they are, the decoder in float32.
    assert resident.ram_bytes < leaves.ram_bytes <= model.ram_bytes
    if len(part(cascade, component).modules) > 1:
        assert model.vram_bytes < resident.vram_bytes


@settings(derandomize=True, database=None, deadline=None, max_examples=100)
@given(cascades, components, floats, st.sampled_from(STRATEGIES))
def test_weights_are_on_the_card_in_ram_or_in_the_file(
    cascade: str, component: str, dtype: str, strategy: str
) -> None:
    """On a CPU everything is in RAM; under an offload the weights are in RAM, beside the process; what
    streams is neither there nor, but for a window, on the card."""
    weights = sum(stored_bytes(m.weights, dtype, dtype) for m in part(cascade, component).modules)
    on_cpu = predict(part(cascade, component), in_float(component, dtype, device="cpu"))
    assert on_cpu.vram_bytes == 0
    assert on_cpu.ram_bytes > weights
    on_card = predict(part(cascade, component), in_float(component, dtype, strategy=strategy))
    assert on_card.vram_bytes > 0
    if strategy == RESIDENT:
        assert on_card.vram_bytes > weights
    elif strategy == STREAM:
        resident = predict(part(cascade, component), in_float(component, dtype))
        assert on_card.vram_bytes < resident.vram_bytes - weights / 2
        # Each network has two pinned buffers of 34 MB, as the dry runs have it.
        others = len(part(cascade, component).modules) - 1
        assert on_card.ram_bytes < 1_200 * MB + others * 68 * MB
    else:
        assert on_card.ram_bytes > weights


@settings(derandomize=True, database=None, deadline=None, max_examples=100)
@given(st.integers(1, 10**10), st.integers(0, 10**9), floats, st.sampled_from(STRATEGIES))
def test_more_weights_never_take_less(numbers: int, more: int, dtype: str, strategy: str) -> None:
    """Estimates grow with the module; a network in the table has measured figures instead."""
    in_table = {count for turn in read_table().turns for count in turn.modules.values()}
    assume(in_table.isdisjoint({numbers, numbers + more}))
    for device in ("cuda:0", "cpu"):
        sizes = [
            predict(
                Part("stage_1", None, (Module("unet", Weights(n), 2 * n, 64),)),
                in_float(STAGE_1, dtype, strategy=strategy, device=device),
            )
            for n in (numbers, numbers + more)
        ]
        assert sizes[0].vram_bytes <= sizes[1].vram_bytes
        assert sizes[0].ram_bytes <= sizes[1].ram_bytes


# --- streaming ----------------------------------------------------------------------------------

streaming = st.sampled_from([TEXT_ENCODER, STAGE_1, STAGE_2, UPSCALER])
devices = st.sampled_from(["cuda:0", "cpu"])
resident = st.integers(0, 20 * 10**9)


@settings(derandomize=True, database=None, deadline=None, max_examples=200)
@given(cascades, streaming, floats, devices, resident, resident)
def test_the_more_stays_the_more_it_takes_but_never_more_than_all(
    cascade: str, component: str, dtype: str, device: str, one: int, other: int
) -> None:
    """Memory grows with what stays, from far under the resident component's up to no more than it, but
    for the prompts that wait for each other between blocks of a text encoder."""
    base = in_float(component, dtype, device=device)
    less, more = (
        replace(base, strategy=STREAM, resident_bytes=size) for size in sorted((one, other))
    )
    waiting = 330_000_000 if component == TEXT_ENCODER else 0
    its = part(cascade, component)
    assert in_place_bytes(its, less) <= in_place_bytes(its, more) <= in_place_bytes(its, base)
    assert predict(its, less).vram_bytes <= predict(its, more).vram_bytes
    assert predict(its, more).vram_bytes <= predict(its, base).vram_bytes + waiting
    assert predict(its, less).ram_bytes <= predict(its, more).ram_bytes
    if device == "cpu":
        assert predict(its, more).ram_bytes <= predict(its, base).ram_bytes + waiting
    nothing = replace(less, resident_bytes=0)
    assert in_place_bytes(its, nothing) < 0.3 * in_place_bytes(its, base)
    assert predict(its, nothing).read_bytes == predict(its, base).read_bytes


@pytest.mark.parametrize("cascade", PUBLISHED)
@pytest.mark.parametrize("dtype", FLOATS)
def test_most_that_may_stay_is_offered_first_and_none_of_the_encoder(
    cascade: str, dtype: str
) -> None:
    """Of a UNet up to three quarters; T5 needs each weight once, so it keeps nothing."""
    for component in (STAGE_1, STAGE_2, UPSCALER):
        its = part(cascade, component)
        choices = resident_choices(its, in_float(component, dtype, strategy=STREAM))
        assert choices == sorted(set(choices), reverse=True)
        unet = stored_bytes(its.modules[0].weights, dtype, dtype)
        assert (choices[0] // MB, choices[-1]) == (int(0.875 * unet) // 10**8 * 100, 0)
    encoder = part(cascade, TEXT_ENCODER)
    assert resident_choices(encoder, in_float(TEXT_ENCODER, dtype, strategy=STREAM)) == [0]


# --- what is small, and what is left free -------------------------------------------------------


def test_decoding_in_strips_takes_less() -> None:
    """It lowers the upscaler's peak under every strategy, on a card and on a CPU."""
    x4 = part("if-xl", UPSCALER)
    for strategy in STRATEGIES:
        whole, strips, from_ram = (
            predict(x4, setting(UPSCALER, strategy=strategy, decoding=way))
            for way in (WHOLE, STRIPS, RAM_STRIPS)
        )
        assert from_ram.vram_bytes <= strips.vram_bytes < whole.vram_bytes
        assert from_ram.ram_bytes == strips.ram_bytes + 2**30
    on_cpu = in_float(UPSCALER, "float32", device="cpu")
    in_strips = predict(x4, replace(on_cpu, decoding=STRIPS))
    assert in_strips.ram_bytes < predict(x4, on_cpu).ram_bytes


@pytest.mark.parametrize("component", COMPONENTS)
def test_what_is_read_from_disk_are_the_files(component: str) -> None:
    """The bytes read are the component's files, each once; for int8 the published 8-bit file."""
    files = sum(m.file_bytes for m in part("if-xl", component).modules)
    assert predict(part("if-xl", component), setting(component)).read_bytes == files
    assert predict(part("if-xl", component), setting(component, device="cpu")).read_bytes == files
    if component == TEXT_ENCODER:
        eight_bit = part("if-xl", component).eight_bit_file_bytes
        for storage, read in (("int8", eight_bit), ("nf4", files)):
            predicted = predict(part("if-xl", component), setting(component, storage_dtype=storage))
            assert predicted.read_bytes == read


def test_without_an_8bit_file_int8_reads_the_16bit_ones() -> None:
    """A cascade without a published 8-bit encoder is quantised from its 16-bit files."""
    own = replace(part("if-xl", TEXT_ENCODER), eight_bit_file_bytes=0)
    predicted = predict(own, setting(TEXT_ENCODER, storage_dtype="int8"))
    assert predicted.read_bytes == own.modules[0].file_bytes


@pytest.mark.parametrize("storage", QUANTISED)
def test_a_quantised_encoder_fits_where_the_16bit_one_does_not(storage: str) -> None:
    """On a card of 8 GB and more the 8-bit encoder saves gigabytes."""
    t5 = part("if-xl", TEXT_ENCODER)
    quantised = predict(t5, setting(TEXT_ENCODER, storage_dtype=storage))
    assert quantised.vram_bytes < predict(t5, setting(TEXT_ENCODER)).vram_bytes - 3_000 * MB


# --- what torch's allocator holds ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("component", "strategy"),
    [(TEXT_ENCODER, RESIDENT), (STAGE_1, STREAM), (STAGE_2, MODEL_OFFLOAD), (UPSCALER, RESIDENT)],
)
def test_the_allocators_reserve_is_the_tables(component: str, strategy: str) -> None:
    """Of a turn that a dry run saw, the reserve is predicted to the byte; RAM does not change."""
    its = part("if-xl", component)
    one = in_float(component, "float16", strategy=strategy, device="cuda:0")
    turn = look_up_step(its, component, strategy, "float16", attention="fused")
    assert turn is not None
    plain, held = (predict(its, one, reserve=reserve) for reserve in (False, True))
    waiting = plain.vram_bytes - max(turn.loading_bytes, turn.drawing_bytes, turn.decoding_bytes)
    assert held.vram_bytes == turn.reserved_bytes + waiting > plain.vram_bytes
    assert replace(held, vram_bytes=plain.vram_bytes) == plain


@pytest.mark.parametrize("changes", [{"batch": 4}, {"area": 2.0}, {"batch": 2, "area": 1.5}])
def test_the_reserve_grows_with_what_is_drawn(changes: dict[str, float]) -> None:
    """More is unused beside more activations."""
    its = part("if-xl", STAGE_2)
    one = in_float(STAGE_2, "float16", device="cuda:0")
    more = replace(one, **changes)  # type: ignore[arg-type]
    unused = [
        predict(its, each, reserve=True).vram_bytes - predict(its, each).vram_bytes
        for each in (one, more)
    ]
    assert unused[1] > 1.4 * unused[0] > 0


def test_a_network_that_nobody_simulated_has_a_reserve_too() -> None:
    """Of a cascade that the table lacks, it is a share of the activations."""
    known = part("if-xl", STAGE_2)
    (module,) = known.modules
    weights = replace(module.weights, other=module.weights.other + 1)
    unknown = replace(known, modules=(replace(module, weights=weights),))
    one = in_float(STAGE_2, "float16", device="cuda:0")
    unused = predict(unknown, one, reserve=True).vram_bytes - predict(unknown, one).vram_bytes
    there = predict(known, one, reserve=True).vram_bytes - predict(known, one).vram_bytes
    assert 0.9 * there < unused < 1.2 * there


def test_on_a_cpu_there_is_no_such_reserve() -> None:
    """The allocator there is the system's."""
    its, one = part("if-xl", STAGE_1), in_float(STAGE_1, "float32", device="cpu")
    assert predict(its, one, reserve=True) == predict(its, one)


def test_headroom_is_kept_in_ram_always_and_in_vram_on_a_card() -> None:
    """Workspaces that no prediction sees and some safety are left free."""
    assert headroom("cpu")[0] == 0
    for device in ("cuda:0", "xpu:0", "mps"):
        assert headroom(device)[0] >= 500 * MB
    assert headroom("cpu")[1] == headroom("cuda:0")[1] >= 200 * MB


def test_the_finish_is_small() -> None:
    """Safety checker and watermark take under 2 GB of RAM on the CPU."""
    finish = predict(part("if-xl", POSTPROCESS), in_float(POSTPROCESS, "float32", device="cpu"))
    assert 1_200 * MB < finish.ram_bytes < 2_000 * MB


@pytest.mark.parametrize("device", ["cpu", "cuda:0", "mps"])
@pytest.mark.parametrize("component", [STAGE_1, STAGE_2, UPSCALER])
def test_a_wider_picture_takes_more_everywhere(component: str, device: str) -> None:
    """Twice the pixels take about twice the activations, of networks that the table knows, too."""
    its = part("if-xl", component)
    square = in_float(component, "float16" if device != "cpu" else "float32", device=device)
    wide = replace(square, area=2.0)
    resource = "ram_bytes" if device == "cpu" else "vram_bytes"
    one, two = (getattr(predict(its, setting), resource) for setting in (square, wide))
    weights = in_place_bytes(its, square)
    working = one - weights
    if device == "cpu":
        (row,) = [look_up(m, item_bytes=4) for m in its.modules if m.folder == "unet"]
        assert row is not None
        # The process, and the layers that oneDNN holds once more.
        working -= PROCESS_RAM_BYTES + int(2.6 * row.largest_layer_bytes)
    assert two - one > 0.5 * working


def test_texts_that_wait_for_a_streaming_encoder_take_memory_where_it_computes() -> None:
    """Their hidden states stand on the accelerator: 256 of T5-XXL, in float32, beside what one takes."""
    states = TEXTS_A_PASS * 77 * 4096 * 4  # beside float16 they are float32
    its = part("if-xl", TEXT_ENCODER)
    streaming = in_float(TEXT_ENCODER, "float16", strategy=STREAM, device="cuda:0")
    streaming = replace(streaming, batch=TEXTS_A_PASS)
    turn = look_up_step(its, TEXT_ENCODER, STREAM, "float16", attention="fused")
    assert turn is not None
    assert predict(its, streaming).vram_bytes >= turn.drawing_bytes + states
