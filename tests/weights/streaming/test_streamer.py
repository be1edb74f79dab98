"""Weights that stay in their files: the same bits as resident ones, and nothing left behind."""

from __future__ import annotations

import gc
import os
import random
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny_networks import COMPONENTS, resident, skeleton
from transformers.models.t5.modeling_t5 import T5Block

from lowmem_if.errors import CheckpointError
from lowmem_if.weights.files.checkpoint import Checkpoint
from lowmem_if.weights.files.weight_copies import convert
from lowmem_if.weights.loading import load_diffusers_model, stream_diffusers_model
from lowmem_if.weights.streaming import page_cache
from lowmem_if.weights.streaming.arena import Arena
from lowmem_if.weights.streaming.prefetch import LoadOnDemand, PrefetchThread, prefetch_for
from lowmem_if.weights.streaming.streamer import Streamed
from lowmem_if.weights.streaming.transports import CastTransport, MappedTransport

Way = Callable[..., Any]


PASSES = 3


def stream(folder: Path, dtype: str, **options: Any) -> Streamed:
    whole = (T5Block,) if folder.name == "text_encoder" and "stage_1" in str(folder) else ()
    checkpoint = Checkpoint.of_folder(folder)
    return Streamed(
        skeleton(folder), checkpoint, getattr(torch, dtype), "cpu", whole=whole, **options
    )


def weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@pytest.fixture(scope="session")
def stored_as(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny cascade with its files in another number type."""
    made: dict[str, Path] = {"float16": tiny}

    def give(dtype: str) -> Path:
        if dtype not in made:
            made[dtype] = tmp_path_factory.mktemp(dtype) / "cascade"
            shutil.copytree(tiny, made[dtype])
            for file in made[dtype].rglob("*.fp16*.safetensors"):
                tensors = {k: v.to(getattr(torch, dtype)) for k, v in load_file(file).items()}
                save_file(tensors, file, metadata={"format": "pt"})
        return made[dtype]

    return give


@pytest.mark.parametrize(
    ("stored", "dtype", "transport"),
    [
        ("float16", "float32", CastTransport),
        ("float16", "bfloat16", CastTransport),
        ("bfloat16", "bfloat16", MappedTransport),
        ("float32", "float32", MappedTransport),
    ],
)
@pytest.mark.parametrize("component", COMPONENTS)
def test_streamed_equals_resident_bit_for_bit(
    stored_as: Callable[[str], Path],
    component: str,
    stored: str,
    dtype: str,
    transport: type,
) -> None:
    """Every component, from every file type, with nothing, something or all resident, pass for pass."""
    folder, call = stored_as(stored) / component, COMPONENTS[component][1]
    whole = resident(folder, dtype)
    with torch.no_grad():
        expected = [call(whole, number) for number in range(PASSES)]
        wants = {n: p.requires_grad for n, p in whole.named_parameters()}
        for share in (0, 0.4, 1):
            budget = int(share * 2 * weight_bytes(folder))
            with stream(folder, dtype, resident_bytes=budget) as streamed:
                assert type(streamed._transport) is transport
                assert (streamed.streamed_bytes == 0) == (share == 1), share
                assert wants == {n: p.requires_grad for n, p in streamed.module.named_parameters()}
                for number in range(PASSES):
                    assert torch.equal(call(streamed.module, number), expected[number]), share


@pytest.mark.parametrize("component", ["stage_1/unet", "stage_1/text_encoder", "upscaler/vae"])
def test_on_apple_gpus_the_computing_thread_loads_the_weights(tiny: Path, component: str) -> None:
    """One thread alone then touches the weights; the bits are the same, and it goes on after a pass."""
    assert prefetch_for("mps") is LoadOnDemand
    assert prefetch_for("cuda:0") is prefetch_for("cpu") is PrefetchThread
    folder, call, threads = tiny / component, COMPONENTS[component][1], set()
    whole, computes = resident(folder, "float32"), torch.get_num_threads()
    with (
        torch.no_grad(),
        stream(
            folder,
            "float32",
            between=lambda: threads.add(threading.current_thread()),
            prefetch=LoadOnDemand,
        ) as streamed,
    ):
        for number in range(PASSES):
            assert torch.equal(call(streamed.module, number), call(whole, number))
            assert "streaming" not in {thread.name for thread in threading.enumerate()}
    assert threads == {threading.main_thread()}
    assert torch.get_num_threads() == computes


def test_an_error_on_the_computing_thread_is_the_readers_own(tiny: Path) -> None:
    """What fails while weights are loaded is raised by the forward that needs them, and later ones."""

    def fail() -> None:
        raise CheckpointError("the disk is gone")

    folder = tiny / "stage_1/unet"
    with (
        torch.no_grad(),
        stream(folder, "float32", between=fail, prefetch=LoadOnDemand) as streamed,
    ):
        for number in range(2):
            with pytest.raises(CheckpointError, match="the disk is gone"):
                COMPONENTS["stage_1/unet"][1](streamed.module, number)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("stored", "dtype"), [("float16", "float32"), ("float32", "float32")])
def test_delays_anywhere_change_nothing(
    stored_as: Callable[[str], Path], stored: str, dtype: str, seed: int
) -> None:
    """With the reading thread and the computing one stopped at random, the bits stay."""
    folder, call = stored_as(stored) / "stage_1/unet", COMPONENTS["stage_1/unet"][1]
    chance = random.Random(seed)

    def dawdle(*_: Any) -> None:
        if chance.random() < 0.1:
            time.sleep(chance.random() * 0.01)

    whole = resident(folder, dtype)
    with torch.no_grad(), stream(folder, dtype, between=dawdle) as streamed:
        for module in streamed.module.modules():
            module.register_forward_hook(dawdle)
        for number in range(PASSES):
            assert torch.equal(call(streamed.module, number), call(whole, number))


def test_memory_stays_at_the_window(tmp_path: Path) -> None:
    """A network of 600 MB in float32 runs twice in less than 200 MB above where it began."""
    from lowmem_if.weights.memory_readings import Sampler, read_memory, release_memory

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(2500, 2500) for _ in range(24))

        def forward(self, numbers: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                numbers = layer(numbers)
            return numbers

        def _fix_state_dict_keys_on_load(self, table: Any) -> None:
            """As diffusers' networks have it."""

    file = tmp_path / "net.safetensors"
    with torch.device("meta"):
        net = Net().eval()
    save_file(
        {name: torch.zeros(p.shape, dtype=torch.half) for name, p in net.named_parameters()}, file
    )
    before, readings = release_memory(), list[Any]()
    sampler = Sampler("cpu", readings.append, 0.002)
    sampler.start()
    with torch.no_grad(), Streamed(net, Checkpoint((file,)), torch.float32, "cpu") as streamed:
        assert streamed.streamed_bytes > 600_000_000
        for _ in range(2):
            streamed.module(torch.zeros(1, 2500))
    sampler.stop()
    assert max(reading.ram_anon for reading in readings) - before.ram_anon < 200e6
    assert release_memory().ram_anon - before.ram_anon < 20e6
    assert read_memory().ram_file - before.ram_file < 20e6


@pytest.mark.parametrize("component", ["stage_1/unet", "stage_2/unet", "upscaler/unet"])
def test_groups_are_in_about_the_order_of_their_calls(tiny: Path, component: str) -> None:
    """The first pass prefetches in that order; what it loads too early it has to load twice."""
    called: list[torch.nn.Module] = []
    with stream(tiny / component, "float32") as streamed:
        places = {module: k for k, group in enumerate(streamed._groups) for module in group.modules}
        hooks = [m.register_forward_pre_hook(lambda m, _inputs: called.append(m)) for m in places]
        COMPONENTS[component][1](streamed.module, 0)
        for hook in hooks:
            hook.remove()
    shifts = [abs(places[module] - k) for k, module in enumerate(dict.fromkeys(called))]
    assert len(shifts) == len(places) > 40
    assert max(shifts) <= 12


def test_a_bfloat16_copy_is_streamed_in_place_of_the_files(tiny: Path) -> None:
    """With a copy in the cache nothing is cast any more, and the bits are those of casting."""
    folder, call = tiny / "stage_1/unet", COMPONENTS["stage_1/unet"][1]
    convert(folder)
    options: dict[str, Any] = {"dtype": "bfloat16", "device": "cpu", "channels_last": True}
    whole = load_diffusers_model(folder, UNet2DConditionModel, **options)
    with (
        torch.no_grad(),
        stream_diffusers_model(folder, UNet2DConditionModel, **options) as streamed,
    ):
        assert type(streamed._transport) is MappedTransport
        for number in range(PASSES):
            assert torch.equal(call(streamed.module, number), call(whole, number))
    with stream_diffusers_model(
        folder, UNet2DConditionModel, dtype="float32", device="cpu"
    ) as single:
        assert type(single._transport) is CastTransport


# --- nothing is left behind -------------------------------------------------------------------------


@pytest.fixture
def copy(stored_as: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A UNet folder that no other test breaks, or maps."""

    def make(stored: str) -> Path:
        folder = tmp_path / "stage_1" / "unet"
        shutil.copytree(stored_as(stored) / "stage_1/unet", folder)
        return folder

    return make


def traces(folder: Path) -> list[str]:
    """Threads, mappings and handles that streaming from a folder has left."""
    gc.collect()
    threads = [thread.name for thread in threading.enumerate() if thread.name == "streaming"]
    maps = [
        line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line
    ]
    handles = [str(link.resolve()) for link in Path("/proc/self/fd").iterdir()]
    return threads + maps + [handle for handle in handles if str(folder) in handle]


@pytest.mark.parametrize(("stored", "dtype"), [("float16", "float32"), ("float32", "float32")])
def test_as_much_of_a_file_stays_cached_as_there_is_memory_for(
    stored_as: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, stored: str, dtype: str
) -> None:
    """The cache holds the file's own numbers, whatever type they are computed in; half fits by half."""
    folder = stored_as(stored) / "stage_1/unet"
    with stream(folder, dtype) as streamed:
        groups = streamed._groups
    whole = sum(group.file_bytes for group in groups)
    assert whole == pytest.approx(weight_bytes(folder), rel=0.1)
    monkeypatch.setattr(page_cache, "tightest_group", lambda: None)
    for share in (0, 0.5, 1):
        available = int(share * whole) + 1000 + page_cache.RESERVE_BYTES
        memory = SimpleNamespace(available=available)
        monkeypatch.setattr(page_cache.psutil, "virtual_memory", lambda memory=memory: memory)
        cached = sum(group.file_bytes for group in page_cache.cacheable(groups, 1000))
        assert share - 0.1 <= cached / whole <= share


def hooks(module: torch.nn.Module) -> int:
    return sum(
        len(part._forward_hooks)
        + len(part._forward_pre_hooks)
        + len(part._forward_hooks_always_called)
        for part in module.modules()
    )


@pytest.mark.parametrize("stored", ["float16", "float32"])
def test_closing_leaves_nothing(copy: Callable[[str], Path], stored: str) -> None:
    """No thread, handle, mapping, hook or weight; and the network can be collected."""
    folder, call = copy(stored), COMPONENTS["stage_1/unet"][1]
    with torch.no_grad(), stream(folder, "float32", resident_bytes=10**5) as streamed:
        call(streamed.module, 1)
        module = streamed.module
    assert traces(folder) == []
    assert hooks(module) == 0
    assert all(parameter.is_meta for parameter in module.parameters())
    reference = weakref.ref(module)
    del module, streamed
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("stored", ["float16", "float32"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, torch.OutOfMemoryError])
def test_an_error_in_the_middle_of_a_forward_leaves_nothing(
    copy: Callable[[str], Path], stored: str, error: type[BaseException]
) -> None:
    """An exception or a Ctrl-C inside a layer comes out as it is, and everything is closed."""
    folder, call = copy(stored), COMPONENTS["stage_1/unet"][1]

    def fail(*_: Any) -> None:
        raise error("in a layer")

    def one_pass() -> None:
        with stream(folder, "float32") as streamed:
            streamed.module.mid_block.resnets[0].conv2.register_forward_hook(fail)
            call(streamed.module, 1)

    with pytest.raises(error, match="in a layer"):
        one_pass()
    assert traces(folder) == []


def test_a_network_goes_on_after_an_error(tiny: Path) -> None:
    """Caught inside the `with`, an error in a layer does not spoil the next pass."""
    folder, call = tiny / "stage_1/unet", COMPONENTS["stage_1/unet"][1]
    whole = resident(folder, "float32")
    with torch.no_grad(), stream(folder, "float32") as streamed:
        layer = streamed.module.mid_block.resnets[0].conv2
        hook = layer.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            call(streamed.module, 1)
        hook.remove()
        assert torch.equal(call(streamed.module, 1), call(whole, 1))


def vanish(file: Path) -> None:
    file.unlink()


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 3)


def replace(file: Path) -> None:
    shutil.copy(file, file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)


@pytest.mark.parametrize("stored", ["float16", "float32"])
@pytest.mark.parametrize("harm", [vanish, truncate, replace])
def test_a_file_that_changes_under_a_pass_is_told_and_leaves_nothing(
    copy: Callable[[str], Path], stored: str, harm: Callable[[Path], None]
) -> None:
    """Removed, shortened or replaced in the middle of a forward: one line that names the file."""
    folder = copy(stored)
    (file,) = folder.glob("*.safetensors")
    call = COMPONENTS["stage_1/unet"][1]
    harmed: list[Any] = []

    def once(*_: Any) -> None:
        if not harmed:
            harmed.append(harm(file))

    def two_passes() -> None:
        with stream(folder, "float32") as streamed:
            streamed.module.down_blocks[0].resnets[0].register_forward_hook(once)
            for number in range(2):
                call(streamed.module, number)

    with pytest.raises(CheckpointError) as caught:
        two_passes()
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    del caught
    assert traces(folder) == []


def test_weights_that_are_not_the_networks_close_the_files(copy: Callable[[str], Path]) -> None:
    """A mismatch found while taking over leaves no thread and no handle."""
    folder = copy("float16")
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    tensors.pop(min(tensors))
    save_file(tensors, file, metadata={"format": "pt"})
    del tensors  # they map the file, too
    with pytest.raises(CheckpointError, match="1 missing weights"):
        stream(folder, "float32")
    assert traces(folder) == []


# --- the arena --------------------------------------------------------------------------------------


def test_an_arena_gives_what_is_free_and_nothing_twice() -> None:
    """Over a thousand random takings and returns no two parts overlap, and all fits again in the end."""
    chance, arena, parts = random.Random(1), Arena(256 * 100), dict[Any, Any]()
    for _ in range(1000):
        size = chance.randint(1, 256 * 30)
        offset = arena.take(size)
        if offset is None or chance.random() < 0.3:
            if offset is not None:
                arena.give_back(offset)
            for old in chance.sample(sorted(parts), len(parts) // 2):
                arena.give_back(old)
                del parts[old]
            continue
        assert offset % 256 == 0
        assert offset + size <= arena.size
        assert all(offset + size <= o or o + s <= offset for o, s in parts.items())
        parts[offset] = size
    for old in parts:
        arena.give_back(old)
    assert arena.take(arena.size) == 0
    assert arena.take(1) is None
