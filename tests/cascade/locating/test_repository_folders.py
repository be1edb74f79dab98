"""Repositories that lie in one folder under their own names are a cascade."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lowmem_if.cascade.catalog import (
    COMPONENTS,
    IF_DEFAULTS,
    POSTPROCESS,
    STAGE_1,
    STAGE_2,
    TEXT_ENCODER,
    UPSCALER,
)
from lowmem_if.cascade.locate import Location, locate
from lowmem_if.cascade.locating.repository_folders import kind_of_unet
from lowmem_if.cascade.locating.weights_choice import PartChoice, WeightsChoice
from lowmem_if.errors import CascadeError

ROOTS = ("stage_1", "stage_2", "upscaler")
PLAIN = ("IF-I-L-v1.0", "IF-II-M-v1.0", "stable-diffusion-x4-upscaler")
NESTED = (
    "DeepFloyd/IF-I-L-v1.0", "DeepFloyd/IF-II-M-v1.0", "stabilityai/stable-diffusion-x4-upscaler",
)  # fmt: skip
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CACHED = tuple(f"models--{name.replace('/', '--')}/snapshots/{COMMIT}" for name in NESTED)


def models(tiny: Path, folder: Path, names: tuple[str, ...]) -> Path:
    """A folder of repositories: the roots of the tiny cascade under these names."""
    for root, name in zip(ROOTS, names, strict=False):
        shutil.copytree(tiny / root, folder / name)
    return folder


def refused(weights: str | WeightsChoice) -> str:
    with pytest.raises(CascadeError) as caught:
        locate(weights)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def folders(location: Location) -> list[Path | None]:
    return [location.folder(component) for component in COMPONENTS]


@pytest.mark.parametrize(
    "names",
    [PLAIN, NESTED, CACHED, tuple(name.lower() for name in PLAIN),
     tuple(name.replace("/", "--") for name in NESTED)],
    ids=["plain", "nested", "cache", "lower case", "flat"],
)  # fmt: skip
def test_repositories_under_their_own_names_are_found(
    tiny: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    """However a download has laid them out, the folder that holds them is the cascade."""
    folder = models(tiny, tmp_path / "models", names)
    found = locate(str(folder))
    first, second, third = (folder / name for name in names)
    assert folders(found) == [first, first, second, third, first]
    assert found.cascade.name == str(folder)
    assert found.cascade.defaults == IF_DEFAULTS
    assert found.cascade.parts[STAGE_1].modules == locate(str(tiny)).cascade.parts[STAGE_1].modules


def test_of_several_snapshots_main_is_used(tiny: Path, tmp_path: Path) -> None:
    """A cache that was updated holds an old commit, too."""
    folder = models(tiny, tmp_path / "hub", CACHED)
    storage = folder / "models--DeepFloyd--IF-I-L-v1.0"
    shutil.copytree(storage / "snapshots" / COMMIT, storage / "snapshots" / ("f" * 40))
    assert "not a cascade" in refused(str(folder))
    (storage / "refs").mkdir()
    (storage / "refs" / "main").write_text("f" * 40)
    assert locate(str(folder)).folder(STAGE_1) == storage / "snapshots" / ("f" * 40)


def test_what_a_request_does_not_use_may_be_missing(tiny: Path, tmp_path: Path) -> None:
    """Small pictures need the repository of stage 1 alone; a larger one names what is missing."""
    folder = models(tiny, tmp_path / "models", PLAIN[:1])
    small = locate(str(folder), components=(TEXT_ENCODER, STAGE_1, POSTPROCESS))
    assert small.folder(STAGE_1) == folder / PLAIN[0]
    assert "stage_2" in refused(str(folder))


def test_with_two_of_a_stage_the_user_chooses(tiny: Path, tmp_path: Path) -> None:
    """The line says how; the choice is enough, since every stage 1 has the same text encoder."""
    folder = models(tiny, tmp_path / "models", PLAIN)
    other = Path(shutil.copytree(folder / PLAIN[0], folder / "IF-I-XL-v1.0"))
    shutil.rmtree(other / "text_encoder")
    text = refused(str(folder))
    assert f"IF-I-XL-v1.0 and IF-I-L-v1.0: choose one, like --part stage_1={folder}/IF-I-L" in text
    chosen = WeightsChoice(str(folder), parts=(PartChoice(STAGE_1, str(other)),))
    found = locate(chosen)
    assert found.folder(STAGE_1) == other
    assert found.folder(TEXT_ENCODER) == folder / PLAIN[0]
    assert found.folder(POSTPROCESS) == other
    assert found.folder(STAGE_2) == folder / PLAIN[1]


@pytest.mark.parametrize(
    ("root", "words"),
    [
        ("stage_1", "is one repository (stage 1), not a cascade"),
        ("stage_2", "is one repository (stage 2), not a cascade"),
        ("upscaler", "is one repository (upscaler), not a cascade"),
    ],
)
def test_one_repository_is_no_cascade(tiny: Path, root: str, words: str) -> None:
    """It is recognised by its configuration, and the line says how to use it."""
    text = refused(str(tiny / root))
    assert words in text
    assert f"--part {root}={tiny / root}" in text


def test_a_unet_is_known_by_its_configuration(tiny: Path) -> None:
    """Input channels and conditions tell the stages apart; anything else is none of them."""
    kinds = {
        root: kind_of_unet(json.loads((tiny / root / "unet" / "config.json").read_text()))
        for root in ROOTS
    }
    assert kinds == {"stage_1": STAGE_1, "stage_2": STAGE_2, "upscaler": UPSCALER}
    for config in ({}, {"in_channels": 4}, {"in_channels": [3]}, {"in_channels": 3, "x": 1}):
        expected = STAGE_1 if config.get("in_channels") == 3 else None
        assert kind_of_unet(dict(config)) == expected
