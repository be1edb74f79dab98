"""The planner over machines of every kind and size: what holds for each plan and each refusal."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from machines import (
    BASE,
    GB,
    ask,
    card,
    cpu,
    drawn_plans,
    drawn_steps,
    machines,
    pins,
    preferences,
    rams,
    refusal,
    requests,
    roomy,
    step,
    thorough,
    try_plan,
    vrams,
)

from lowmem_if.cascade import catalog
from lowmem_if.cascade.catalog import STAGE_1, STAGE_2, TEXT_ENCODER, UPSCALER
from lowmem_if.cascade.locate import locate
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
)
from lowmem_if.hardware.machine import Machine
from lowmem_if.hardware.profiles import load_profile, profile_names
from lowmem_if.planning.candidates import configs_for
from lowmem_if.planning.estimates.execution import WHOLE, ExecutionConfig
from lowmem_if.planning.estimates.memory import headroom, predict
from lowmem_if.planning.estimates.memory_table import look_up_step
from lowmem_if.planning.evaluate import Evaluation, evaluated
from lowmem_if.planning.plan import Plan, make_plan
from lowmem_if.planning.step import strictest_step
from lowmem_if.request.build import make_request
from lowmem_if.request.request import Request

pytestmark = pytest.mark.usefixtures("nothing_downloaded")


@pytest.mark.slow
def test_the_machines_of_these_tests_are_worth_testing() -> None:
    """Of the machines and requests below, enough are planned for, and enough are not."""
    seen = Counter[str]()

    for drawn in drawn_plans():
        seen["planned" if drawn.plan else "refused"] += 1
    for _, each in drawn_steps():
        seen.update([each.config.strategy, each.config.device])
        seen["partly resident"] += each.config.resident_bytes > 0

    def count(machine: Machine, request: Request, prefer: str | None, pins: dict[str, Pin]) -> None:
        with suppress(DoesNotFit, DeviceError, RequestError):
            pinned = make_plan(machine, request, prefer=prefer, pins=pins)
            seen["planned with pins"] += 1
            seen.update(each.config.strategy for each in pinned.steps)

    for some, number in ((machines, 100), (roomy, 400)):
        drawing = given(some, requests, preferences, pins)(count)
        settings(thorough, max_examples=number)(drawing)()
    assert min(seen["planned"], seen["refused"]) > 30, seen
    assert seen["planned with pins"] > 15, seen
    for word in ("cuda:0", "xpu:0", "mps", "cpu", RESIDENT, STREAM):
        assert seen[word] > 20, seen
    assert seen["partly resident"] > 20, seen
    assert min(seen[MODEL_OFFLOAD], seen[SEQUENTIAL_OFFLOAD]) > 20, seen


@pytest.mark.slow
def test_any_machine_is_either_planned_for_or_told_what_does_not_fit() -> None:
    """From nothing to plenty no machine makes the planner crash."""
    for vram in (0, 1, 4, 6, 8, 12, 16, 24):
        for ram in (0, 1, 4, 8, 12, 16, 32):
            for machine in (card(vram, ram), card(vram, ram, "mps"), cpu(ram)):
                try_plan(machine, ask())


def test_a_plan_keeps_within_the_budget() -> None:
    """Every step's predicted peaks and the headroom are within VRAM and RAM; on Apple, together."""
    for drawn, each in drawn_steps():
        machine = drawn.machine
        vram_spare, ram_spare = headroom(each.config.device)
        assert each.estimate.ram_bytes + ram_spare <= machine.ram_bytes
        assert (
            each.estimate.vram_bytes + vram_spare <= machine.vram_bytes
            or each.config.device == "cpu"
        )
        if machine.kind == "mps":
            both = each.estimate.vram_bytes + each.estimate.ram_bytes + ram_spare
            assert both <= machine.ram_bytes


@pytest.mark.slow
@thorough
@given(machines, requests, preferences)
def test_a_budget_is_used_to_its_last_byte(
    machine: Machine, request: Request, prefer: str | None
) -> None:
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


def test_a_plan_has_a_settled_step_for_each_component() -> None:
    """Steps come in running order; each has known words, a reason and a time."""
    for drawn in drawn_plans():
        if plan := drawn.plan:
            assert (plan.machine, plan.request, plan.asked, plan.pins) == (
                drawn.machine, drawn.request, drawn.prefer, {},
            )  # fmt: skip
            assert tuple(each.component for each in plan.steps) == drawn.request.components
    for drawn, each in drawn_steps():
        machine, request = drawn.machine, drawn.request
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


@pytest.mark.slow
@thorough
@given(machines, requests, preferences, vrams, rams)
def test_more_memory_is_never_slower(
    machine: Machine, request: Request, prefer: str | None, more_vram: float, more_ram: float
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cascade", "prefer", "kind", "ram"),
    [  # half of all sixteen: every three of the four values are met together
        ("if-xl", "exact", "cuda", 12),
        ("if-xl", "exact", "mps", 64),
        ("if-xl", "balanced", "cuda", 64),
        ("if-xl", "balanced", "mps", 12),
        ("if-m", "exact", "cuda", 64),
        ("if-m", "exact", "mps", 12),
        ("if-m", "balanced", "cuda", 12),
        ("if-m", "balanced", "mps", 64),
    ],
)
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


def test_without_a_preference_each_component_gets_the_strictest_level_that_fits() -> None:
    """Where all fits, that is `faithful`; on a small card the upscaler goes further and says why."""
    roomy = make_plan(card(80, 80), ask("if-m"))
    assert (roomy.prefer, roomy.asked, roomy.loosened) == ("faithful", None, "")
    assert replace(roomy, automatic=False) == make_plan(
        card(80, 80), ask("if-m"), prefer="faithful"
    )
    further = replace(roomy, prefer="balanced")
    assert further.loosened == "faithful does not fit, so this is balanced: pixels change a little"


def test_a_level_that_does_not_fit_is_named_with_what_it_needs() -> None:
    """The next one is taken, and the reason says what the stricter one is short of."""
    machine, small, request = card(16, 16), card(1, 1), ask("if-m", size=64)
    located_here = locate("if-m")

    def candidates(level: str) -> list[Evaluation]:
        one = small if level == "faithful" else machine
        configs = configs_for(one, request, located_here, STAGE_1, level, Pin(RESIDENT))
        return list(evaluated(one, request, located_here, configs))

    level, chosen = strictest_step(
        machine, request, located_here, ("faithful", "balanced"), candidates, None
    )
    assert level == "balanced"
    assert "; faithful needs " in chosen.reason


def test_a_preference_is_never_exceeded() -> None:
    """What fits only under a looser level is refused, and the level is proposed."""
    error = refusal(card(3.5, 32), ask("if-m"), prefer="exact")
    assert error is not None
    assert error.nearest.startswith("Try --prefer faithful, or free ")
    plan = make_plan(card(3.5, 32), ask("if-m"), prefer="balanced")
    assert (plan.prefer, plan.asked, plan.loosened) == ("balanced", "balanced", "")


def test_an_unknown_preference_is_refused_with_the_known_ones() -> None:
    """All four levels are named."""
    with pytest.raises(RequestError, match=r"'best'.*exact.*faithful.*balanced.*fast"):
        make_plan(BASE, ask(), prefer="best")


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
        if each.config.device != "cpu" and each.config.decoding == WHOLE:
            turn = look_up_step(
                parts[each.component], each.component, each.config.strategy, each.config.storage_dtype,
                attention="fused",
            )  # fmt: skip
            assert turn is not None
            assert turn.reserved_bytes <= machine.vram_bytes - headroom(each.config.device)[0]
