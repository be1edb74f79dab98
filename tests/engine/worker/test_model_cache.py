"""Components that stay loaded: the same pixels, nothing loaded twice, none too many, none left."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import kinds, plan_of, results, run_here, with_prompt
from sample_pictures import half, noise

from lowmem_if.cascade.catalog import (
    COMPONENTS,
    POSTPROCESS,
    STAGE_1,
    STAGE_2,
    TEXT_ENCODER,
    UPSCALER,
)
from lowmem_if.cascade.locate import locate
from lowmem_if.engine.events import Event
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.worker.model_cache import ModelCache
from lowmem_if.engine.worker_answers import CacheState
from lowmem_if.errors import RunFolderError
from lowmem_if.planning.estimates.memory import headroom
from lowmem_if.planning.estimates.weight_bytes import at_rest
from lowmem_if.planning.plan import Plan
from lowmem_if.report.memory_chart import _mark
from lowmem_if.report.tables import console, print_run
from lowmem_if.stages.lifetime import Lifetime
from lowmem_if.stages.stage_1 import Stage1
from lowmem_if.weights.memory_readings import release_memory

MB = 10**6
RED, BLUE = "a red circle", "a blue star"


class Watched:
    """A cache, and the events of it."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.cache = ModelCache(self.events.append, keeps=True)

    def run(self, plan: Plan, path: Path) -> RunFolder:
        self.events.clear()
        return run_here(plan, path, self.events.append, cache=self.cache)

    def loaded(self) -> list[str]:
        """What was loaded in the last run."""
        return list(dict.fromkeys(kinds(self.events, "loading")))

    def here(self) -> list[str]:
        """What the cache reports as loaded."""
        states = [event for event in self.events if isinstance(event, CacheState)]
        return [one.component for one in states[-1].loaded]


@pytest.fixture
def watched() -> Iterator[Watched]:
    watched = Watched()
    yield watched
    list(watched.cache.empty())  # what streams has a thread and a file open


def with_ram(plan: Plan, ram_bytes: int) -> Plan:
    return replace(plan, machine=replace(plan.machine, ram_bytes=ram_bytes))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["resident", "stream"])
def test_a_second_run_loads_nothing_and_draws_the_pixels_of_a_run_alone(
    tiny: Path, tmp_path: Path, watched: Watched, strategy: str
) -> None:
    """Every component is reused for another prompt, seed and guidance; each bit is as if loaded anew."""
    pins = [f"{name}={strategy}" for name in COMPONENTS[:-1]]
    watched.run(plan_of(tiny, RED, pins=pins), tmp_path / "first")
    assert watched.loaded() == list(COMPONENTS)
    other = plan_of(tiny, BLUE, seed=5, steps=3, guidance_scale=2.0, pins=pins)
    folder = watched.run(other, tmp_path / "second")
    assert watched.loaded() == []
    assert kinds(watched.events, "cache_hit") == list(COMPONENTS)
    alone = run_here(other, tmp_path / "alone")
    assert results(folder.path) == results(alone.path)
    assert all(release.complete for _, release in watched.cache.empty())
    assert watched.here() == []


@pytest.mark.slow
def test_other_modes_take_the_same_networks(tiny: Path, tmp_path: Path, watched: Watched) -> None:
    """Pictures varied and repainted with the UNets that drew from text, as runs alone do it."""
    watched.run(plan_of(tiny, RED), tmp_path / "text")
    image, mask = noise(tmp_path / "image.png"), half(tmp_path / "mask.png")
    requests: list[dict[str, Any]] = [
        {"mode": "vary", "image": image, "strength": 0.9},
        {"mode": "vary", "image": image, "style_prompt": BLUE},
        {"mode": "inpaint", "image": image, "mask": mask},
        {"mode": "text"},
    ]
    for number, request in enumerate(requests):
        plan = plan_of(tiny, BLUE, size=256, **request)
        folder = watched.run(plan, tmp_path / f"warm-{number}")
        assert watched.loaded() == []
        assert results(folder.path) == results(run_here(plan, tmp_path / f"alone-{number}").path)


def test_a_small_budget_keeps_what_fits_beside_each_step(
    tiny: Path, tmp_path: Path, watched: Watched
) -> None:
    """With room for the largest step and half of the others: no peak and its company are over it."""
    plan = plan_of(tiny, RED)
    parts = locate(str(tiny)).cascade.parts
    rest = {s.component: at_rest(parts[s.component], s.config)[1] for s in plan.steps}
    peaks = {step.component: step.estimate.ram_bytes for step in plan.steps}
    largest, spare = max(peaks, key=lambda name: peaks[name]), headroom("cpu")[1]
    assert largest == UPSCALER
    others = sum(rest[name] for name in COMPONENTS if name != UPSCALER)
    small = with_ram(plan, peaks[UPSCALER] + spare + others // 2)
    for name in ("first", "second"):
        request = with_prompt(small.request, name)
        folder = watched.run(replace(small, request=request), tmp_path / name)
        for component in COMPONENTS:
            measured = folder.measured(component)
            assert measured is not None
            assert measured.warm_ram_bytes + peaks[component] + spare <= small.machine.ram_bytes
        # For the upscaler the text encoder goes, then what had its turn just before.
        assert kinds(watched.events, "evicted") == [TEXT_ENCODER, STAGE_2]
    assert watched.loaded() == [TEXT_ENCODER, STAGE_2]


def test_with_no_room_to_spare_a_step_is_alone_and_goes_for_the_next(
    tiny: Path, tmp_path: Path, watched: Watched
) -> None:
    """A budget that every step needs all of: the one just used goes before the next comes."""
    plan = plan_of(tiny, RED)
    for number in range(2):
        request = with_prompt(plan.request, f"text {number}")
        watched.run(replace(with_ram(plan, 1), request=request), tmp_path / str(number))
        first = [POSTPROCESS] * number
        assert kinds(watched.events, "evicted") == [*first, *COMPONENTS[:-1]]
        assert watched.loaded() == list(COMPONENTS)
        assert watched.here() == [POSTPROCESS]


def test_what_leaves_in_its_own_run_is_proved_in_its_folder(
    tiny: Path, tmp_path: Path, watched: Watched
) -> None:
    """A step's record says that it stayed, or what was left when it had to go."""
    folder = watched.run(with_ram(plan_of(tiny, RED), 1), tmp_path / "run")
    for component in COMPONENTS[:-1]:
        released = folder.released(component)
        assert released is not None
        assert released.alive == ()
        assert not folder.kept_loaded(component)
    assert folder.released(POSTPROCESS) is None
    assert folder.kept_loaded(POSTPROCESS)
    assert folder.notices == ()


def test_what_was_beside_a_step_is_not_put_down_to_it(
    tiny: Path, tmp_path: Path, watched: Watched
) -> None:
    """The record has the whole peak and its company; the table subtracts it, the picture adds it."""
    folder = watched.run(plan_of(tiny, RED, size=64), tmp_path / "run")
    step = folder.plan.step(STAGE_1)
    first, measured = folder.measured(TEXT_ENCODER), folder.measured(STAGE_1)
    assert first is not None
    assert measured is not None
    assert set(first.to_json()) == {"vram_bytes", "ram_bytes", "seconds"}
    assert measured.warm_ram_bytes == 526592  # the text encoder's weights in float32
    measured = measured.model_copy(update={"ram_bytes": 700 * MB, "warm_ram_bytes": 300 * MB})
    folder.finish_step(STAGE_1, measured, None, kept_loaded=True)
    out = console(None)
    print_run(folder, out)
    told = out.file.getvalue()  # type: ignore[attr-defined]
    line = next(line for line in told.splitlines() if line.startswith("stage 1"))
    assert "400.0 MB" in line
    assert line.endswith("kept loaded")
    assert "kept loaded from before: during stage 1: 300.0 MB of RAM, postprocess: " in told
    assert _mark(folder, step, "ram") == pytest.approx(step.estimate.ram_bytes / 1e9 + 0.3)


def test_weights_that_changed_on_disk_are_loaded_anew(
    tiny: Path, tmp_path: Path, watched: Watched
) -> None:
    """Stage 1 replaced between two runs: it alone is loaded again, and draws what the new file says."""
    cascade = tmp_path / "cascade"
    shutil.copytree(tiny, cascade)
    watched.run(plan_of(cascade, RED), tmp_path / "first")
    weights = cascade / "stage_1" / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1000:] = bytes(1000)
    weights.write_bytes(content)
    folder = watched.run(plan_of(cascade, RED), tmp_path / "second")
    assert kinds(watched.events, "evicted") == [STAGE_1]
    assert watched.loaded() == [STAGE_1]
    assert results(folder.path) == results(run_here(plan_of(cascade, RED), tmp_path / "alone").path)


@pytest.mark.parametrize(
    ("change", "component"),
    [
        ({"pins": ["stage_2=resident:bfloat16"]}, STAGE_2),
        ({"pins": ["stage_1=stream"]}, STAGE_1),
        ({"thresholding": (0.9, 1.5)}, STAGE_1),
        ({"safety_checker": False}, POSTPROCESS),
    ],
)
def test_another_form_of_a_component_takes_the_place_of_the_old_one(
    tiny: Path, tmp_path: Path, watched: Watched, change: dict[str, Any], component: str
) -> None:
    """Number type, strategy, scheduler and flags are made into a component: never two forms of one."""
    watched.run(plan_of(tiny, RED, size=256), tmp_path / "first")
    plan = plan_of(tiny, RED, size=256, **change)
    folder = watched.run(plan, tmp_path / "second")
    evicted = kinds(watched.events, "evicted")
    assert component in evicted
    assert evicted == watched.loaded()
    assert results(folder.path) == results(run_here(plan, tmp_path / "alone").path)


def test_a_turn_that_fails_drops_its_component_and_no_other(
    tiny: Path, tmp_path: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an error in the middle of drawing a pipeline is not used again; the run goes on later."""

    def full(self: Stage1, *args: object) -> torch.Tensor:
        raise RunFolderError("the disk is full")

    plan = plan_of(tiny, RED, size=64)
    with monkeypatch.context() as patched:
        patched.setattr(Stage1, "run", full)
        with pytest.raises(RunFolderError):
            watched.run(plan, tmp_path / "run")
    assert watched.here() == [TEXT_ENCODER]
    folder = watched.run(plan, tmp_path / "run")
    assert watched.loaded() == [STAGE_1, POSTPROCESS]
    assert len(folder.images) == 1


def test_what_something_still_holds_is_told_when_it_should_have_gone(
    tiny: Path, tmp_path: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leak of a component that stayed is a notice of the run in which it had to go."""
    held = []
    made = Stage1.__init__

    def holding(self: Stage1, *args: Any) -> None:
        made(self, *args)
        held.extend(self.modules)

    monkeypatch.setattr(Stage1, "__init__", holding)
    watched.run(plan_of(tiny, RED, size=64), tmp_path / "first")
    folder = watched.run(plan_of(tiny, RED, size=64, pins=["stage_1=stream"]), tmp_path / "second")
    (notice,) = folder.notices
    assert notice.startswith("stage_1 left")
    assert notice.endswith("still alive: UNet2DConditionModel")


def test_nothing_is_kept_beside_what_must_be_alone(
    tiny: Path, tmp_path: Path, watched: Watched
) -> None:
    """Where memory ran out in company, company leaves before, whatever the budget says."""
    watched.run(plan_of(tiny, RED, size=256), tmp_path / "first")
    watched.cache.alone = frozenset({STAGE_2})
    watched.run(plan_of(tiny, BLUE, size=256), tmp_path / "second")
    assert sorted(kinds(watched.events, "evicted")) == sorted([TEXT_ENCODER, STAGE_1, POSTPROCESS])
    assert watched.here() == [STAGE_2, POSTPROCESS]


class Heavy:
    """A component of so many bytes."""

    def __init__(self, size: int) -> None:
        self.modules: list[torch.nn.Module] = [torch.nn.Linear(size // 4, 1, bias=False)]

    @classmethod
    def load(cls, config: Any) -> Any:
        raise NotImplementedError

    def run(self, inputs: Any, on_step: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        self.modules = []


def test_a_component_answers_for_its_own_turns_only() -> None:
    """Memory that others take or give back while it rests is not its own; what its turns leave is."""
    other = torch.ones(40 * MB)
    life = Lifetime(lambda: Heavy(200 * MB), device="cpu", weight_bytes=200 * MB)
    life.rest()
    del other
    another = torch.ones(50 * MB)
    assert life.end().complete
    leaking = Lifetime(lambda: Heavy(200 * MB), device="cpu", weight_bytes=200 * MB)
    leak = torch.ones(25 * MB)
    leaking.rest()
    del another
    release = leaking.end()
    assert not release.complete
    assert release.ram_left_bytes == pytest.approx(leak.nbytes, rel=0.2)


def test_a_component_that_rests_takes_what_is_counted_for_it() -> None:
    """Weights where they compute; a bfloat16 upscaler decodes in float32 for good."""
    parts = locate("demo").cascade.parts
    plan = plan_of("demo", pins=["upscaler=resident:bfloat16"])
    setting = plan.step(UPSCALER).config
    vram, ram = at_rest(parts[UPSCALER], setting)
    weights = sum(module.weights.parameters for module in parts[UPSCALER].modules)
    vae = next(m for m in parts[UPSCALER].modules if m.folder == "vae").weights.parameters
    assert (vram, ram) == (0, 2 * weights + 2 * vae)
    on_card = replace(setting, device="cuda:0", storage_dtype="float16", compute_dtype="float16")
    assert at_rest(parts[UPSCALER], on_card)[0] >= 2 * weights
    moving = replace(on_card, strategy="sequential_offload")
    assert at_rest(parts[UPSCALER], moving) == (0, 2 * weights)
    assert release_memory().vram_allocated == 0
