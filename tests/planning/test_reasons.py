"""What a step says of its choice: why it was made, and what it was taken instead of."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from machines import (
    ask,
    card,
    cpu,
    drawn_steps,
    step,
)

from lowmem_if.cascade import catalog
from lowmem_if.cascade.catalog import STAGE_1, STAGE_2, TEXT_ENCODER, UPSCALER
from lowmem_if.cascade.parts import Module, Part, Weights
from lowmem_if.cascade.strategies import (
    RESIDENT,
    STREAM,
    Pin,
)
from lowmem_if.planning.estimates.execution import ExecutionConfig
from lowmem_if.planning.estimates.weight_bytes import resident_choices
from lowmem_if.planning.plan import make_plan

pytestmark = pytest.mark.usefixtures("nothing_downloaded")


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


def test_a_choice_never_beats_itself() -> None:
    """What a step was taken instead of reads differently from the step."""
    for drawn, each in drawn_steps():
        other = each.instead_of.partition(":")[0]
        assert each.config.device != drawn.machine.device or other != str(each.config)


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


def test_streaming_names_the_resident_share_and_what_did_not_fit() -> None:
    """The reason names the resident share, and the runner-up the RAM that a resident network needs."""
    stage = step(make_plan(cpu(8, "avx512_bf16"), ask(size=64)), STAGE_1)
    assert "5.3 GB resident, other layers are read from the file in every pass" in stage.reason
    assert re.fullmatch(
        r"resident bfloat16: \d+ min \d+ s, but needs 10\.0 GB of RAM, 8\.0 GB available",
        stage.instead_of,
    )
    small = step(make_plan(cpu(2.5, "avx512_bf16"), ask(size=64)), STAGE_1)
    assert "to spare; layers are read from the file in every pass" in small.reason


def test_a_pinned_stream_names_the_next_that_fits() -> None:
    """What the quickest of the pinned ways was taken instead of had no room, or is slower."""
    pins = {STAGE_1: Pin(STREAM)}
    roomy, large = (step(make_plan(cpu(ram), ask(size=64), pins=pins), STAGE_1) for ram in (64, 12))
    assert re.fullmatch(r"stream float32, 12\.9 GB resident: \d+ min \d+ s", roomy.instead_of)
    assert re.fullmatch(
        r"stream float32, 15\.0 GB resident: \d+ min \d+ s, but needs 17\.\d GB of RAM, "
        r"12\.0 GB available",
        large.instead_of,
    )
    encoder = step(make_plan(cpu(8), ask(size=64), pins={TEXT_ENCODER: Pin(STREAM)}), TEXT_ENCODER)
    assert (encoder.reason.split(";")[0], encoder.instead_of) == ("pinned", "")


def test_casting_at_every_pass_is_told_with_what_spares_it() -> None:
    """A UNet that streams in bfloat16 from other files on a CPU says how a copy of it is made."""
    words = "weights are cast in every pass unless you run `fetch --convert bf16`"
    plan = make_plan(cpu(3, "avx512_bf16"), ask(), prefer="faithful")
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
