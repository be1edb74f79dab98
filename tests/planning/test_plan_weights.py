"""Plans for mixed cascades and fine-tuned parts: measured rows where shapes are published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lowmem_if.cascade import catalog
from lowmem_if.cascade.catalog import STAGE_1, STAGE_2, TEXT_ENCODER
from lowmem_if.errors import DoesNotFit
from lowmem_if.hardware.machine import Machine
from lowmem_if.hardware.profiles import load_profile
from lowmem_if.planning.alternatives import closest_alternatives
from lowmem_if.planning.estimates.memory_table import look_up
from lowmem_if.planning.plan import Plan, make_plan
from lowmem_if.request.build import make_request
from lowmem_if.weights.synthetic.checkpoints import ZEROS, synthesize


@pytest.fixture
def t4() -> Machine:
    return load_profile("colab-free").machine


def plan(machine: Machine, cascade: str, **options: object) -> Plan:
    return make_plan(machine, make_request("a", seed=1, cascade=cascade, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(catalog.MIXED))
@pytest.mark.parametrize("size", [256, 1024])
def test_every_mix_is_planned_from_the_steps_of_the_named_cascades(
    name: str, size: int, t4: Machine, nothing_downloaded: Path
) -> None:
    """Each stage of a mix is planned as in the named cascade that has it."""
    mixed = plan(t4, name, size=size)
    first, second = catalog.STAGE_PAIRS[name]
    for stage, network in ((STAGE_1, first), (STAGE_2, second)):
        named = next(c for c in catalog.PUBLISHED if network in catalog.STAGE_PAIRS[c])
        assert mixed.step(stage).estimate == plan(t4, named, size=size).step(stage).estimate
    assert mixed.request.cascade == name
    assert len(mixed.steps) == (5 if size == 1024 else 4)


def test_fine_tuned_weights_of_published_shapes_use_the_measured_rows(
    t4: Machine, tmp_path: Path, nothing_downloaded: Path
) -> None:
    """Only the headers of the files are read: the network is recognised by its parameters."""
    synthesize("if-l", tmp_path, fill=ZEROS, components=(STAGE_1,))
    own = plan(t4, "if-m", size=256, parts={STAGE_1: tmp_path / "stage_1"})
    published = plan(t4, "if-l", size=256)
    assert own.step(STAGE_1).config == published.step(STAGE_1).config
    assert own.step(STAGE_1).estimate.vram_bytes == published.step(STAGE_1).estimate.vram_bytes
    (unet,) = own.request.locate().cascade.parts[STAGE_1].modules
    assert look_up(unet, item_bytes=2) is not None
    assert own.step(TEXT_ENCODER) == plan(t4, "if-m", size=256).step(TEXT_ENCODER)


def test_a_part_on_this_disk_is_not_downloaded(
    t4: Machine, tmp_path: Path, nothing_downloaded: Path
) -> None:
    """The download is that of the cascade without its own stage."""
    synthesize("if-m", tmp_path, fill=ZEROS, components=(STAGE_1,))
    whole = plan(t4, "if-m", size=64)
    own = plan(t4, "if-m", size=64, parts={STAGE_1: tmp_path / "stage_1"})
    unet = catalog.FIRST_STAGES["I-M"].file_bytes
    assert whole.download_bytes - own.download_bytes == pytest.approx(unet, rel=0.001)


def test_a_network_of_an_unknown_shape_is_planned_by_formula(
    t4: Machine, tiny: Path, tmp_path: Path
) -> None:
    """It has no row in the table, and a plan nonetheless."""
    own = plan(t4, str(tiny), size=64, parts={STAGE_1: tiny / "stage_1"})
    (unet,) = own.request.locate().cascade.parts[STAGE_1].modules
    assert look_up(unet, item_bytes=2) is None
    assert own.step(STAGE_1).estimate.vram_bytes > 0


def test_a_refusal_of_a_mix_names_a_smaller_cascade(nothing_downloaded: Path) -> None:
    """The words can be followed as they are."""
    seen = []

    def fits(_machine: object, request: object, *_: object) -> bool:
        seen.append(request.cascade)  # type: ignore[attr-defined]
        return request.cascade == "if-m"  # type: ignore[attr-defined]

    request = make_request("a", seed=1, size=64, cascade="I-M+II-L")
    machine = load_profile("laptop-cpu-8gb").machine
    words = closest_alternatives(machine, request, "balanced", {}, fits)
    assert words.startswith("Try --cascade if-m")
    assert "if-l" not in seen


def test_a_plan_with_parts_is_the_same_after_json(tiny: Path) -> None:
    """A plan is a value, with its parts."""
    machine = load_profile("laptop-cpu-16gb").machine
    made = plan(machine, str(tiny), size=64, parts={STAGE_1: tiny / "stage_1"})
    assert Plan.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_a_mix_that_does_not_fit_is_refused_with_figures(nothing_downloaded: Path) -> None:
    """As for every cascade."""
    machine = load_profile("laptop-cpu-8gb").machine
    with pytest.raises(DoesNotFit, match="does not fit"):
        make_plan(
            Machine(**{**{f: getattr(machine, f) for f in machine.__slots__}, "ram_bytes": 10**9}),
            make_request("a", seed=1, cascade="I-XL+II-M"),
        )
