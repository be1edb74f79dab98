"""A batch: one load of each component, the pixels of each line alone, bounded and resumable."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import work_until
from PIL import Image
from runs import CPU, kinds, plan_of, results, run_here
from safetensors.torch import load_file

import lowmem_if as lm
from lowmem_if.cascade.catalog import POSTPROCESS, STAGE_1, STAGE_2, TEXT_ENCODER, UPSCALER
from lowmem_if.cli.main import main
from lowmem_if.engine.events import Event
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.worker import executor
from lowmem_if.engine.worker.steps import step_run
from lowmem_if.errors import BatchError, RequestError, RunFolderError
from lowmem_if.planning.plan import Plan, make_plan
from lowmem_if.request.batch_request import request_of
from lowmem_if.request.build import make_request
from lowmem_if.stages.components import STAGES
from lowmem_if.stages.postprocess import Postprocessed
from lowmem_if.stages.stage import ImageInputs, OnStep, StageConfig, TextInputs
from lowmem_if.weights.files import atomic
from lowmem_if.weights.memory_readings import Sampler, read_memory

RED, BLUE = "a red circle", "a blue star"


def batch_plan(cascade: Path, *records: Any, **values: Any) -> Plan:
    """The plan for lines on the tests' machine, two steps a stage."""
    options = {"seed": 1, "steps": 2, "cascade": str(cascade), "size": 64} | values
    request, bad_lines = request_of(records, **options)
    assert not bad_lines
    return make_plan(CPU, request, prefer="exact")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "own.png"
    Image.linear_gradient("L").resize((48, 48)).convert("RGB").save(file)
    return file


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes of the components that are loaded from now on, one entry a load."""
    loaded: list[str] = []
    life = step_run.Lifetime

    def counting(load: Callable[[], Any], **options: Any) -> Any:
        def counted() -> Any:
            component = load()
            loaded.append(type(component).__name__)
            return component

        return life(counted, **options)

    monkeypatch.setattr(step_run, "Lifetime", counting)
    return loaded


def mixed(picture: Path) -> list[dict[str, Any]]:
    """Lines of several modes, sizes and texts; two of them need the same embedding."""
    return [
        {"prompt": RED},
        {"prompt": BLUE, "size": 256, "seed": 9, "negative_prompt": "red"},
        {"prompt": RED, "mode": "vary", "image": str(picture), "strength": 0.5, "seed": "4..5"},
        {"prompt": BLUE, "size": 1024, "images": 2},
    ]


# --- what a batch draws


def test_each_component_is_loaded_once_for_all_lines(
    tiny: Path, tmp_path: Path, picture: Path, loads: list[str]
) -> None:
    """Whatever modes and sizes they have; a line runs through its own stages and no others."""
    events: list[Event] = []
    folder = run_here(batch_plan(tiny, *mixed(picture)), tmp_path / "run", events.append)
    assert loads == ["TextEncoder", "Stage1", "Stage2", "Upscaler", "Postprocessor"]
    assert len(folder.images) == 6
    assert Counter(kinds(events, "saved")) == {STAGE_1: 6, STAGE_2: 3, UPSCALER: 2, POSTPROCESS: 6}
    assert len(list((folder.path / "embeds").iterdir())) == 4  # two prompts, "red" and no words


@pytest.mark.slow
def test_sixty_four_prompts_are_one_load_of_each_component(
    tiny: Path, tmp_path: Path, loads: list[str]
) -> None:
    """And one embedding for each text that is there more than once."""
    lines = [f"a {'red' if number % 2 else 'blue'} circle" for number in range(64)]
    folder = run_here(batch_plan(tiny, *lines, steps=1), tmp_path / "run")
    assert loads == ["TextEncoder", "Stage1", "Postprocessor"]
    assert len(folder.images) == 64
    assert len(list((folder.path / "embeds").iterdir())) == 3


@pytest.mark.slow
def test_a_line_has_the_pixels_that_it_has_alone(tiny: Path, tmp_path: Path, picture: Path) -> None:
    """Bit for bit, and its file says of it what a run of its own would."""
    folder = run_here(batch_plan(tiny, *mixed(picture)), tmp_path / "run")
    asked = {"cascade": str(tiny), "steps": 2}
    alone = [
        make_request((RED,), seed=(1,), size=64, **asked),  # type: ignore[arg-type]
        make_request((BLUE,), seed=(9,), size=256, negative_prompt="red", **asked),  # type: ignore[arg-type]
        make_request((RED,), mode="vary", image=picture, strength=0.5, seed=(5,), size=64, **asked),  # type: ignore[arg-type]
    ]
    for number, request in zip((0, 1, 3), alone, strict=True):
        own = run_here(make_plan(CPU, request, prefer="exact"), tmp_path / f"own-{number}")
        stage = request.images[0].stages[-1]
        ours, theirs = (
            load_file(f.path / stage / f"{n:04}.safetensors")["tensor"]
            for f, n in ((folder, number), (own, 0))
        )
        assert torch.equal(ours, theirs), number
        told, expected = (
            json.loads(Image.open(file).text["request"])  # type: ignore[attr-defined]
            for file in (folder.path / f"{number:04}.png", own.path / "0000.png")
        )
        assert told == expected


def test_what_a_line_leaves_open_is_what_all_have(tiny: Path) -> None:
    """Seed, size, negative prompt and number of images of the run, unless the line says its own."""
    request, _ = request_of(
        [RED, {"prompt": BLUE, "seed": 3, "images": 1}],
        seed=7, size=256, images=2, negative_prompt="dull", cascade=str(tiny),
    )  # fmt: skip
    told = [(t.number, t.prompt, t.seed, t.size, t.negative_prompt) for t in request.images]
    assert told == [
        (0, RED, 7, 256, "dull"), (1, RED, 8, 256, "dull"), (2, BLUE, 3, 256, "dull"),
    ]  # fmt: skip


def test_a_batch_is_read_back_as_it_was_written(tiny: Path, picture: Path) -> None:
    """Plan, lines and pictures, through JSON."""
    plan = batch_plan(tiny, *mixed(picture))
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_prompts_and_lines_exclude_each_other() -> None:
    """A request has one or the other."""
    with pytest.raises(RequestError, match="exclude each other"):
        make_request(("a",), lines=({"prompt": "b"},))


@pytest.mark.worker
def test_lines_from_python_are_prompts_or_tables(tiny: Path, tmp_path: Path) -> None:
    """`lm.batch` takes them as they are, and gives the bad ones back."""
    result = lm.batch(
        [RED, {"prompt": BLUE, "images": 0}, 5, {"prompt": BLUE}],  # type: ignore[list-item]
        cascade=str(tiny), seed=1, steps=1, size=64, out=tmp_path / "run", device="cpu",
    )  # fmt: skip
    assert len(result.run.images) == 2
    assert [line.number for line in result.bad_lines] == [2, 3]


# --- the command


@pytest.mark.worker
def test_a_bad_line_stops_no_other_and_the_end_says_so(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All others are drawn, the exit code is 1, and both are told with the line's number."""
    file = tmp_path / "a.jsonl"
    file.write_text(f'{{"prompt": "{RED}"}}\n{{"prompt": ""}}\n{{"prompt": "{BLUE}"}}\n')
    out = tmp_path / "run"
    options = ["--cascade", str(tiny), "--size", "64", "--steps", "1", "--seed", "1"]
    assert main(["batch", str(file), *options, "--out", str(out), "--json"]) == 1
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert lines[0].startswith("note: line 2: the prompt is empty")
    assert lines[-1].startswith("error: skipped 1 invalid line (2); all others are done")
    told = json.loads(captured.out)
    assert [Path(image).name for image in told["images"]] == ["0000.png", "0001.png"]
    assert told["complete"]
    assert told["bad_lines"] == [{"number": 2, "reason": lines[0].removeprefix("note: line 2: ")}]
    assert (out / "gallery.html").is_file()


def test_a_batch_without_one_good_line_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is begun."""
    file = tmp_path / "a.jsonl"
    file.write_text('{"promt": "x"}\n{"prompt": ""}\n')
    assert main(["batch", str(file), "--out", str(tmp_path / "run")]) == 1
    assert "no line is valid: line 1: " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_holds_for_all_lines_is_checked_once(tmp_path: Path) -> None:
    """A wrong option is no bad line."""
    file = tmp_path / "a.txt"
    file.write_text(RED)
    assert main(["batch", str(file), "--size", "65"]) == 2


@pytest.mark.worker
def test_a_batch_begun_without_a_seed_goes_on_with_it(tiny: Path, tmp_path: Path) -> None:
    """The same command again is the same run."""
    options: dict[str, Any] = {
        "cascade": str(tiny), "steps": 1, "size": 64, "out": tmp_path / "run", "device": "cpu",
    }  # fmt: skip
    first = lm.batch([RED], **options)
    again = lm.batch([RED], **options)
    assert again.run.images == first.run.images
    with pytest.raises(RunFolderError, match="another request") as caught:
        lm.batch([BLUE] * 1000, **options)
    assert len(str(caught.value)) < 1000
    with pytest.raises(BatchError, match="the batch is empty"):
        lm.batch([], **options)


# --- killed, and large


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
@pytest.mark.worker
def test_a_killed_batch_goes_on_at_the_very_image(tiny: Path, tmp_path: Path) -> None:
    """SIGKILL after each saved picture: none is drawn twice, and the bytes are those of one go."""
    plan = batch_plan(tiny, RED, {"prompt": BLUE, "size": 256}, {"prompt": RED, "seed": 2}, steps=1)
    whole = RunFolder.for_plan(tmp_path / "whole", plan).path
    code, events = work_until(whole)
    assert code == 0
    expected = results(whole)
    stops = [n for n, (kind, _) in enumerate(events, 1) if kind == "saved"]
    assert len(stops) == 7
    for last in stops:
        path = RunFolder.for_plan(tmp_path / f"killed-{last}", plan).path
        code, before = work_until(path, last)
        assert code == -signal.SIGKILL
        code, after = work_until(path)
        assert code == 0
        assert results(path) == expected
        saved = Counter(c for k, c in [*before, *after] if k == "saved")
        assert saved == {STAGE_1: 3, STAGE_2: 1, POSTPROCESS: 3}
        shutil.rmtree(path)


class Fake:
    """A component that costs nothing: what is left is what the batch itself costs."""

    def __init__(self) -> None:
        self.modules: list[torch.nn.Module] = []

    @classmethod
    def load(cls, _config: StageConfig) -> Any:
        return cls()

    def close(self) -> None:
        self.modules = []


class FakeEncoder(Fake):
    def run(self, inputs: TextInputs, _on_step: OnStep) -> Any:
        return (torch.zeros(1, 77, 64) for _ in inputs.prompts)


class FakeStage(Fake):
    def run(self, inputs: ImageInputs, _on_step: OnStep) -> torch.Tensor:
        return torch.zeros(len(inputs.tasks), 3, 8, 8)


class FakePostprocessor(Fake):
    def run(self, _picture: torch.Tensor, _on_step: OnStep) -> Postprocessed:
        return Postprocessed(Image.new("RGB", (8, 8)), flagged=True)  # which is a notice each


def seconds_of(plan: Plan, path: Path) -> dict[str, float]:
    """What folder and turns take for a plan whose components are fakes."""
    took = {}
    for name, act in {
        "begin": lambda: RunFolder.for_plan(path, plan),
        "work": lambda: executor.work(RunFolder.open(path), lambda _event: None),
        "resume": lambda: executor.work(RunFolder.open(path), lambda _event: None),
        "gallery": lambda: lm.write_gallery(RunFolder.open(path)),
    }.items():
        began = time.process_time()
        act()
        took[name] = time.process_time() - began
    return took


@pytest.mark.slow
def test_two_thousand_lines_cost_five_times_what_four_hundred_do(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planning, the folder's books, going on and the page grow with the lines; memory hardly does."""
    for name, fake in {
        TEXT_ENCODER: FakeEncoder,
        STAGE_1: FakeStage,
        POSTPROCESS: FakePostprocessor,
    }.items():
        monkeypatch.setitem(STAGES, name, fake)
    monkeypatch.setattr(atomic.os, "fsync", lambda _descriptor: None)
    took: dict[int, dict[str, float]] = {}
    peaks: dict[int, int] = {}
    for count in (400, 2000):
        monkeypatch.setenv("LOWMEM_IF_CACHE", str(tmp_path / f"cache-{count}"))
        before, seen = read_memory("cpu").ram_anon, [0]
        sampler = Sampler("cpu", lambda reading, seen=seen: seen.append(reading.ram_anon))  # type: ignore[misc]
        sampler.start()
        began = time.process_time()
        lines = [{"prompt": f"a red circle number {n}", "seed": n} for n in range(count)]
        plan = batch_plan(tiny, *lines)
        took[count] = {"plan": time.process_time() - began}
        took[count] |= seconds_of(plan, tmp_path / f"run-{count}")
        sampler.stop()
        peaks[count] = max(seen) - before
        folder = RunFolder.open(tmp_path / f"run-{count}")
        assert folder.complete
        assert len(folder.notices) == count
    for name in took[400]:
        assert took[2000][name] < 9 * took[400][name] + 0.2, (name, took)
    assert sum(took[2000].values()) < 120
    assert peaks[2000] < 100e6, peaks


@pytest.mark.slow
def test_thousands_of_prompts_stream_through_the_encoder_in_groups(
    tiny: Path, tmp_path: Path
) -> None:
    """Where its weights stream, no more than some prompts are on the way at once, and all come out."""
    lines = [f"a red circle number {n}" for n in range(300)]
    request, _ = request_of(lines, cascade=str(tiny), seed=1, steps=1, size=64)
    pins = {TEXT_ENCODER: lm.Pin("stream")}
    events: list[Event] = []
    plan = make_plan(CPU, request, prefer="exact", pins=pins)
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setitem(STAGES, STAGE_1, FakeStage)
        patch.setitem(STAGES, POSTPROCESS, FakePostprocessor)
        folder = run_here(plan, tmp_path / "run", events.append)
    shown = [
        (e.done, e.total) for e in events if (e.kind, e.component) == ("drawing", TEXT_ENCODER)
    ]
    assert shown[-1][0] == shown[-1][1]
    assert len({total for _, total in shown}) == 1
    streamed = load_file(folder.embedding_file(lines[-1]))["tensor"]
    resident = run_here(plan_of(tiny, lines[-1], steps=1, size=64), tmp_path / "one")
    assert torch.equal(streamed, load_file(resident.embedding_file(lines[-1]))["tensor"])
