"""The accelerator's way of streaming, with streams that only take notes: order, pinning, reuse."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny_networks import COMPONENTS, resident, skeleton

from lowmem_if.weights.files import staging
from lowmem_if.weights.files.checkpoint import Checkpoint
from lowmem_if.weights.files.staging import Staging
from lowmem_if.weights.files.tensor_reader import Reader
from lowmem_if.weights.streaming.streamer import Streamed
from lowmem_if.weights.streaming.transports import DeviceTransport, StreamSettings

TIME = count()


class Event:
    """Done at once, but waited for only by whoever asks."""

    def __init__(self) -> None:
        self.made = next(TIME)
        self.waited: list[int] = []

    def synchronize(self) -> None:
        self.waited.append(next(TIME))

    def query(self) -> bool:
        return False


class Stream:
    """Does everything at once and notes who waited for what."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.waited_for: list[Event] = []
        self.followed: list[Stream] = []

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to leave."""

    def record_event(self) -> Event:
        self.events.append(Event())
        return self.events[-1]

    def wait_event(self, event: Event) -> None:
        self.waited_for.append(event)

    def wait_stream(self, other: Stream) -> None:
        self.followed.append(other)

    def synchronize(self) -> None:
        """Everything has been done."""


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> tuple[Stream, Stream]:
    """(the copying, the computing) stream of an accelerator that is the CPU."""
    copying, computing = Stream(), Stream()
    monkeypatch.setattr(staging, "copy_stream", lambda _device: copying)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda _device: computing)
    return copying, computing


def on_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Streamed:
    """A network that streams to the "accelerator" as on a real one."""

    def transport(self: Streamed, *_: Any) -> DeviceTransport:
        largest = max(group.size_bytes for group in self._groups)
        settings = StreamSettings(self._checkpoint, 2 * largest, lambda _group: True, self._pause)
        return DeviceTransport(settings, "cpu")

    monkeypatch.setattr(Streamed, "_make_transport", transport)
    return Streamed(skeleton(folder), Checkpoint.of_folder(folder), torch.float32, "cpu")


def test_an_accelerators_weights_are_the_resident_ones(
    tiny: Path, streams: tuple[Stream, Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied through staging buffers into an arena of two layers, three passes give the same bits."""
    folder, call = tiny / "stage_1/unet", COMPONENTS["stage_1/unet"][1]
    whole = resident(folder, "float32")
    with torch.no_grad(), on_device(folder, monkeypatch) as streamed:
        for number in range(3):
            assert torch.equal(call(streamed.module, number), call(whole, number))


def test_computing_waits_for_copies_and_copies_over_it_for_computing(
    tiny: Path, streams: tuple[Stream, Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer's weights are waited for by event, and no part of the arena is written before that."""
    copying, computing = streams
    placed: dict[int, tuple[int, int]] = {}
    load, release = DeviceTransport.load, DeviceTransport.release

    def noted_load(self: DeviceTransport, group: Any) -> None:
        before = len(copying.waited_for)
        offset, memory = self._reserved[group]
        assert offset is not None
        load(self, group)
        waited = copying.waited_for[before:]
        for made, (start, end) in list(placed.items()):
            if start < offset + memory.numel() and offset < end:
                assert made in [event.made for event in waited]

    def noted_release(self: DeviceTransport, group: Any) -> None:
        offset, memory = self._reserved[group]
        release(self, group)
        assert offset is not None
        placed[computing.events[-1].made] = (offset, offset + memory.numel())

    monkeypatch.setattr(DeviceTransport, "load", noted_load)
    monkeypatch.setattr(DeviceTransport, "release", noted_release)
    folder, call = tiny / "stage_1/unet", COMPONENTS["stage_1/unet"][1]
    with torch.no_grad(), on_device(folder, monkeypatch) as streamed:
        call(streamed.module, 1)
        call(streamed.module, 2)
        layers = len(streamed._groups)
    assert len(computing.waited_for) == 2 * layers
    assert len(copying.waited_for) > layers


def test_a_staging_buffer_is_not_filled_again_before_it_was_sent(
    tiny: Path, streams: tuple[Stream, Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With buffers of 4 kB a tensor travels in many pieces; each waits for the last but one."""
    copying, _ = streams
    monkeypatch.setattr(staging, "STAGING_BYTES", 4096)
    with Checkpoint.of_folder(tiny / "stage_1/unet") as checkpoint:
        name = max(checkpoint, key=lambda key: checkpoint.stored(key).size_bytes)
        out = torch.empty(checkpoint[name].shape)
        Staging(Reader(checkpoint), "cpu").read(checkpoint.stored(name), out)
        assert torch.equal(out, checkpoint[name].float())
    pieces = -(-out.numel() * 4 // 4096)
    assert len(copying.events) == pieces > 4
    assert all(event.waited for event in copying.events[:-2])


def test_copies_into_fresh_memory_follow_computing_and_those_into_an_arena_do_not(
    tiny: Path, streams: tuple[Stream, Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A freed block may still be read; an arena's groups have events, and copies beside computing."""
    copying, computing = streams
    with Checkpoint.of_folder(tiny / "stage_1/unet") as checkpoint:
        name = next(iter(checkpoint))
        out = torch.empty(checkpoint[name].shape)
        staged = Staging(Reader(checkpoint), "cpu")
        for number in range(1, 4):
            staged.read(checkpoint.stored(name), out)
            assert copying.followed == [computing] * number
        staged.send(checkpoint.stored(name), out)
        assert len(copying.followed) == 3
    copying.followed.clear()
    folder, call = tiny / "stage_1/unet", COMPONENTS["stage_1/unet"][1]
    reads: list[int] = []
    read = Staging.read
    monkeypatch.setattr(Staging, "read", lambda *args: (reads.append(1), read(*args)))
    with torch.no_grad(), on_device(folder, monkeypatch) as streamed:
        call(streamed.module, 1)
        call(streamed.module, 2)
        assert copying.followed == [computing] * (1 + len(reads))  # once, for the arena itself


def test_waiting_for_a_copy_on_cuda_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event is CUDA's own and blocking, recorded on the very stream of the copies."""
    made: list[Any] = []

    class CudaEvent:
        def __init__(self, **options: Any) -> None:
            self.options = options
            made.append(self)

        def record(self, stream: Any) -> None:
            self.stream = stream

    class Copying:
        stream_id, device_index, device_type = 7, 0, 1

    monkeypatch.setattr(torch.cuda, "Event", CudaEvent)
    monkeypatch.setattr(torch.cuda, "Stream", lambda **names: names)
    event = staging.sleeping_event(Copying(), "cuda:0")
    assert made == [event]
    assert event.options == {"blocking": True}
    assert event.stream == {"stream_id": 7, "device_index": 0, "device_type": 1}


@pytest.mark.parametrize("words", ["CUDA out of memory", "failed to pin memory"])
def test_where_memory_cannot_be_pinned_ordinary_memory_does(
    monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """A refusal to pin, as under WSL, is answered by a buffer that is not pinned."""
    real, asked = torch.empty, []

    def empty(*args: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        asked.append(pin_memory)
        if pin_memory:
            raise RuntimeError(words)
        return real(*args, **options)

    monkeypatch.setattr(torch, "empty", empty)
    assert staging._host_buffer(pinned=True).numel() == staging.STAGING_BYTES
    assert asked == [True, False]


def test_a_network_of_none_of_its_own_weights_needs_no_memory(tiny: Path) -> None:
    """With everything resident nothing streams, and closing is as clean."""
    folder = tiny / "stage_1/unet"
    with Streamed(
        skeleton(folder),
        Checkpoint.of_folder(folder),
        torch.float32,
        "cpu",
        resident_bytes=10**12,
    ) as streamed:
        assert isinstance(streamed.module, UNet2DConditionModel)
        assert streamed.streamed_bytes == 0
