"""LoRAs merged while weights are read: the bits of merging by hand, whatever the way, and no memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from lora_files import (
    SPELLINGS,
    WITH_ALPHA,
    LoraOf,
    is_attention,
    merged_by_hand,
    peft,
    random_lora,
    write,
)
from safetensors.torch import save_file
from tiny_networks import COMPONENTS, assert_same, skeleton

from lowmem_if.cascade.lora.adapter import Lora, loras
from lowmem_if.errors import CheckpointError, LoraError
from lowmem_if.weights.files import staging
from lowmem_if.weights.files.checkpoint import Checkpoint
from lowmem_if.weights.files.staging import Staging
from lowmem_if.weights.files.tensor_reader import Reader
from lowmem_if.weights.files.weight_copies import convert
from lowmem_if.weights.loading import load_diffusers_model, stream_diffusers_model
from lowmem_if.weights.memory_readings import read_memory
from lowmem_if.weights.modules import lora_merge
from lowmem_if.weights.modules.lora_merge import Merges, MergingReader
from lowmem_if.weights.modules.materialize import fill
from lowmem_if.weights.modules.meta_init import slots
from lowmem_if.weights.streaming.streamer import Streamed
from lowmem_if.weights.streaming.transports import (
    CastTransport,
    DeviceTransport,
    MappedTransport,
    StreamSettings,
)

UNET = "stage_1/unet"
call = COMPONENTS[UNET][1]


@pytest.fixture
def lora(tiny: Path) -> LoraOf:
    return random_lora(tiny, "stage_1")


@pytest.fixture
def given(lora: LoraOf, tmp_path: Path) -> tuple[Lora, ...]:
    """The LoRA as a request has it, at 0.7."""
    return loras(f"{write(tmp_path / 'a.safetensors', peft(lora))}:0.7")


def resident(folder: Path, given: Any, dtype: str = "float32") -> Any:
    return load_diffusers_model(folder, UNet2DConditionModel, dtype=dtype, device="cpu", lora=given)


def stream(folder: Path, given: Any, dtype: str = "float32", **options: Any) -> Streamed:
    return stream_diffusers_model(
        folder, UNet2DConditionModel, dtype=dtype, device="cpu", lora=given, **options
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_loaded_network_is_the_one_merged_by_hand(
    tiny: Path, lora: LoraOf, given: tuple[Lora, ...], dtype: str
) -> None:
    """Linear layers and convolutions, in every number type: sums in float32, rounded once."""
    theirs = merged_by_hand(tiny, "stage_1", [(lora, 0.7)], dtype)
    plain = resident(tiny / UNET, (), dtype).state_dict()
    ours = resident(tiny / UNET, given, dtype)
    assert_same(ours, theirs)
    changed = {n for n, w in ours.state_dict().items() if not torch.equal(w, plain[n])}
    assert changed == {f"{layer}.weight" for layer in lora}


@pytest.mark.parametrize(
    ("spelling", "alpha"),
    [*((spelling, None) for spelling in SPELLINGS), *((spelling, 1.0) for spelling in WITH_ALPHA)],
)
def test_every_spelling_gives_the_same_weights(
    tiny: Path, tmp_path: Path, spelling: Callable[[LoraOf], Any], alpha: float | None
) -> None:
    """peft's keys, diffusers' old and new ones, kohya's; alphas are respected where there are any."""
    lora = random_lora(tiny, "stage_1", alpha=alpha, wanted=is_attention)
    assert any(layer.endswith("add_k_proj") for layer in lora)
    assert any(layer.endswith("to_out.0") for layer in lora)
    given = loras(write(tmp_path / "a.safetensors", spelling(lora)))
    theirs = merged_by_hand(tiny, "stage_1", [(lora, 1.0)])
    assert_same(resident(tiny / UNET, given), theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_lora_may_be_stored_in_any_type(tiny: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """It is multiplied in float32."""
    lora = random_lora(tiny, "stage_1", dtype=dtype)
    given = loras(write(tmp_path / "a.safetensors", peft(lora)))
    assert_same(resident(tiny / UNET, given), merged_by_hand(tiny, "stage_1", [(lora, 1.0)]))


def test_peft_s_configuration_says_how_much_each_layer_counts(tiny: Path, tmp_path: Path) -> None:
    """Alpha over rank, by pattern where there is one for the layer; over its root with rsLoRA."""
    lora = random_lora(tiny, "stage_1", alpha=8.0)
    settings = {"r": 4, "lora_alpha": 8, "rank_pattern": {}, "alpha_pattern": {}}
    file = write(tmp_path / "a.safetensors", peft(lora), settings)
    theirs = merged_by_hand(tiny, "stage_1", [(lora, 1.0)])
    assert_same(resident(tiny / UNET, loras(file)), theirs)
    settings |= {"lora_alpha": 3, "alpha_pattern": {"to_q": 8, "conv_in": 8}}
    only = {n: m for n, m in lora.items() if n == "conv_in" or n.endswith("to_q")}
    file = write(tmp_path / "b.safetensors", peft(only), settings)
    assert_same(resident(tiny / UNET, loras(file)), merged_by_hand(tiny, "stage_1", [(only, 1.0)]))
    settings = {"r": 4, "lora_alpha": 4, "use_rslora": True}  # 4 / 2 is 8 / 4
    file = write(tmp_path / "c.safetensors", peft(lora), settings)
    assert_same(resident(tiny / UNET, loras(file)), theirs)


def test_several_loras_add_up_in_their_order(tiny: Path, tmp_path: Path) -> None:
    """Each with a scale of its own, negative ones among them, and other layers and ranks."""
    first = random_lora(tiny, "stage_1")
    second = random_lora(tiny, "stage_1", rank=2, seed=1, wanted=is_attention)
    files = [
        write(tmp_path / f"{number}.safetensors", peft(lora))
        for number, lora in enumerate((first, second))
    ]
    given = loras([f"{files[0]}:0.5", f"{files[1]}:-1.25"])
    theirs = merged_by_hand(tiny, "stage_1", [(first, 0.5), (second, -1.25)])
    assert_same(resident(tiny / UNET, given), theirs)


def test_an_alpha_of_zero_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    """Not even a sign of zero."""
    lora = random_lora(tiny, "stage_1", alpha=0.0)
    given = loras(write(tmp_path / "a.safetensors", SPELLINGS[-1](lora)))
    assert_same(resident(tiny / UNET, given), resident(tiny / UNET, ()))


# --- streaming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("resident_bytes", [0, 60_000, 10**12])
def test_streamed_weights_are_the_resident_ones(
    tiny: Path, given: tuple[Lora, ...], dtype: str, resident_bytes: int
) -> None:
    """Merged anew at every pass, all of them, some or none: the same bits."""
    whole = resident(tiny / UNET, given, dtype)
    options = {"resident_bytes": resident_bytes}
    with torch.no_grad(), stream(tiny / UNET, given, dtype, **options) as streamed:
        assert isinstance(streamed._transport, CastTransport)
        for number in range(3):
            assert torch.equal(call(streamed.module, number), call(whole, number))


def test_a_bfloat16_copy_gives_the_same_bits_whether_it_is_there_or_not(
    tiny: Path, given: tuple[Lora, ...]
) -> None:
    """What is merged is merged into the weights as published; without a LoRA the copy is mapped."""
    whole = resident(tiny / UNET, given, "bfloat16")
    with torch.no_grad():
        with stream(tiny / UNET, given, "bfloat16") as streamed:
            before = call(streamed.module, 1)
        convert(tiny / UNET)
        with stream(tiny / UNET, given, "bfloat16") as streamed:
            after = call(streamed.module, 1)
        assert torch.equal(before, after)
        assert torch.equal(after, call(whole, 1))
    with stream(tiny / UNET, (), "bfloat16", channels_last=True) as streamed:
        assert isinstance(streamed._transport, MappedTransport)


def test_what_could_be_mapped_is_copied_if_something_is_merged_into_it(
    tiny: Path, tmp_path: Path, lora: LoraOf, given: tuple[Lora, ...]
) -> None:
    """A file of the very type that is computed in is never computed with as it is."""
    folder = tmp_path / "cascade" / UNET
    module = resident(tiny / UNET, (), "float32")
    module.save_pretrained(folder)
    theirs = merged_by_hand(tiny, "stage_1", [(lora, 0.7)])
    with torch.no_grad(), stream(folder, given) as streamed:
        assert torch.equal(call(streamed.module, 1), call(theirs, 1))


def test_an_accelerators_weights_are_merged_before_they_travel(
    tiny: Path, given: tuple[Lora, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In staging buffers that hold a part of a tensor, for loading and for streaming."""
    monkeypatch.setattr(staging, "STAGING_BYTES", 4096)
    monkeypatch.setattr(lora_merge, "BLOCK", 500)
    whole = resident(tiny / UNET, given)
    with Checkpoint.of_folder(tiny / UNET) as checkpoint:
        module = skeleton(tiny / UNET)
        wanted = slots(module, checkpoint, torch.float32)
        with Merges.into(wanted, given) as merges:
            staged = Staging(lora_merge.reader_of(checkpoint, merges), "cpu")
            for slot in wanted:
                out = torch.empty(slot.stored.shape)
                staged.read(slot.stored, out)
                assert torch.equal(out, whole.state_dict()[slot.names[0]])
    real = Streamed._make_transport

    def transport(self: Streamed, parts: Any, _device: str) -> Any:
        made = real(self, parts, "cpu")
        assert isinstance(made, CastTransport)
        window = 2 * max(group.size_bytes for group in self._groups)
        settings = StreamSettings(
            self._checkpoint, window, lambda _group: True, self._pause, self._merges
        )
        return DeviceTransport(settings, "cpu")

    monkeypatch.setattr(Streamed, "_make_transport", transport)
    with torch.no_grad(), stream(tiny / UNET, given) as streamed:
        assert torch.equal(call(streamed.module, 1), call(whole, 1))


@pytest.mark.parametrize("block", [7, 100, 1000, 2**20])
def test_a_part_of_a_weight_has_the_bits_of_the_whole(
    tiny: Path, given: tuple[Lora, ...], monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """Wherever it begins and ends: blocks are cut by the weight's shape, not by who asks."""
    monkeypatch.setattr(lora_merge, "BLOCK", block)
    with Checkpoint.of_folder(tiny / UNET) as checkpoint:
        wanted = slots(skeleton(tiny / UNET), checkpoint, torch.float32)
        with Merges.into(wanted, given) as merges:
            changed = [slot for slot in wanted if merges.of(slot.stored)]
            reader = lora_merge.reader_of(checkpoint, merges)
            assert isinstance(reader, MergingReader)
            for slot in changed[::3]:
                whole = torch.empty(slot.stored.shape).flatten()
                reader.read(slot.stored, whole)
                size = whole.numel()
                for start, end in ((0, 1), (1, size), (size // 3, size // 2), (size - 1, size)):
                    part = torch.empty(end - start)
                    reader.read(slot.stored, part, first=start)
                    assert torch.equal(part, whole[start:end])


def test_a_large_weight_is_merged_in_blocks_that_come_to_the_same(tmp_path: Path) -> None:
    """Cut into blocks of rows it is what one product gives, but for the last bits of float32."""
    rows, width, rank = 1300, 1700, 8
    net, given = one_layer(tmp_path, rows, width, rank)
    with Checkpoint((net,)) as checkpoint:
        module = layers(1, rows, width)
        wanted = slots(module, checkpoint, torch.float32)
        with Merges.into(wanted, given) as merges:
            fill(module, checkpoint, wanted, "cpu", merges)
        with Checkpoint((Path(given[0].path),)) as file:
            product = file["layer_0.lora_B.weight"] @ file["layer_0.lora_A.weight"]
        expected = checkpoint["layer_0.weight"].float() + product
    assert rows * width > 2 * lora_merge.BLOCK
    torch.testing.assert_close(module.layer_0.weight.detach(), expected, rtol=1e-6, atol=1e-6)


def layers(count: int, rows: int, width: int) -> Any:
    """Linear layers, side by side, on the meta device."""
    net = torch.nn.Module()
    for number in range(count):
        net.add_module(f"layer_{number}", torch.nn.Linear(width, rows, bias=False, device="meta"))
    net._fix_state_dict_keys_on_load = lambda _table: None
    return net


def one_layer(
    folder: Path, rows: int, width: int, rank: int, count: int = 1
) -> tuple[Path, tuple[Lora, ...]]:
    weights, tensors = {}, {}
    for number in range(count):
        weights[f"layer_{number}.weight"] = torch.randn(rows, width).half()
        tensors[f"layer_{number}.lora_A.weight"] = torch.randn(rank, width)
        tensors[f"layer_{number}.lora_B.weight"] = torch.randn(rows, rank)
    save_file(weights, folder / "net.safetensors")
    save_file(tensors, folder / "lora.safetensors")
    return folder / "net.safetensors", loras(folder / "lora.safetensors")


# --- memory, files, errors -------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's counters")
def test_merging_holds_what_is_planned_for_it_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the network: two matrices and two blocks a thread, not a second network, nor the LoRA."""
    rows = width = 3000
    net, given = one_layer(tmp_path, rows, width, rank=300, count=8)
    seen: list[int] = []
    real = Reader.read

    def read(self: Reader, *arguments: Any, **options: Any) -> None:
        real(self, *arguments, **options)
        seen.append(read_memory().ram_anon)

    with Checkpoint((net,)) as checkpoint:
        module = layers(8, rows, width)
        wanted = slots(module, checkpoint, torch.float16)
        with Merges.into(wanted, given) as merges:
            monkeypatch.setattr(Reader, "read", read)
            before = read_memory().ram_anon
            fill(module, checkpoint, wanted, "cpu", merges)
    network = 8 * rows * width * 2
    threads = min(4, len(os.sched_getaffinity(0)))
    assert given[0].merge_bytes == 4 * 4 * (2 * 300 * 3000 + 2 * lora_merge.BLOCK)
    others = 16 * 10**6  # of a thread: what a reader casts in, and what BLAS packs matrices into
    assert max(seen) - before < network + threads * (given[0].merge_bytes / 4 + others)


@pytest.fixture
def open_files() -> Callable[[Path], list[str]]:
    def those_in(folder: Path) -> list[str]:
        handles = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
        return [handle for handle in handles if handle.startswith(str(folder))]

    return those_in


def test_no_lora_stays_open(
    tiny: Path, tmp_path: Path, given: tuple[Lora, ...], open_files: Any
) -> None:
    """Neither after loading nor after streaming, nor after either has failed."""
    resident(tiny / UNET, given)
    with stream(tiny / UNET, given):
        assert open_files(tmp_path)
    stranger = loras(write(tmp_path / "b.safetensors", peft(random_lora(tiny, "stage_2"))))
    for way in (resident, stream):
        with pytest.raises(LoraError, match="does not fit the UNet"):
            way(tiny / UNET, (*given, *stranger))
    assert not open_files(tmp_path)
    assert not [thread for thread in threading.enumerate() if thread.name == "streaming"]


def test_a_lora_that_changes_while_it_is_in_use_is_told(
    tiny: Path, tmp_path: Path, given: tuple[Lora, ...]
) -> None:
    """A streaming network does not go on with half of another."""
    with torch.no_grad(), stream(tiny / UNET, given) as streamed:
        call(streamed.module, 1)
        file = Path(given[0].path)
        file.write_bytes(file.read_bytes())
        with pytest.raises(CheckpointError, match="changed or replaced"):
            call(streamed.module, 2)


def test_threads_of_the_computing_are_left_alone(tiny: Path, given: tuple[Lora, ...]) -> None:
    """The one that merges multiplies alone; the others keep theirs."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.no_grad(), stream(tiny / UNET, given) as streamed:
            call(streamed.module, 1)
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
