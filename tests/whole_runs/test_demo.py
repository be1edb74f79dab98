"""The bundled cascade shows what it was asked for: semantic tests, at 64 px, in seconds."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy
import pytest
from PIL import Image

import lowmem_if as lm
from lowmem_if.cascade.catalog import KNOWN_WORDS
from lowmem_if.cascade.locate import DEMO_FOLDER
from lowmem_if.engine.run_folder.folder import RunFolder
from training.evaluate import MEASURES, Trial
from training.judge import mark
from training.pictures import read_picture
from training.scenes import Scene, known_words, plain_caption, random_caption, random_scene

pytestmark = pytest.mark.worker

PICTURES = 8


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Scenes with a triple of shape, colour and ground that was kept from training."""
    rng = random.Random(5)
    return [random_scene(rng, held_out=True, count=1) for _ in range(PICTURES)]


@pytest.fixture(scope="module")
def runs(scenes: list[Scene], tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """The scenes drawn with the encoder in float32 and in 8 bits."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWMEM_IF_CACHE", str(folder / "cache"))
        for storage in ("float32", "int8"):
            lm.generate(
                [plain_caption(scene) for scene in scenes],
                seed=tuple(range(1, PICTURES + 1)),
                size=64,
                out=folder / storage,
                pins={"text_encoder": f"resident:{storage}"},
            )
    return {name: RunFolder.open(folder / name) for name in ("float32", "int8")}


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_pictures_show_the_ground_and_the_object_asked_for(
    runs: dict[str, RunFolder], scenes: list[Scene], storage: str
) -> None:
    """All grounds and object colours are right, and nearly all shapes, on combinations never seen."""
    pairs = zip(runs[storage].images, scenes, strict=True)
    marks = [mark(read_picture(image), scene) for image, scene in pairs]
    assert all(m.ground for m in marks)
    assert all(m.colour for m in marks)
    assert sum(m.shape for m in marks) >= PICTURES - 2


def test_stage_2_draws_edges_sharper_than_interpolation_and_nearer_to_the_truth(
    scenes: list[Scene], tmp_path: Path
) -> None:
    """From true pictures of 64 px, as IF's pipelines enlarge them; where things were, 30 dB."""
    stage_2, _, _ = MEASURES["stage_2"]
    found, _ = stage_2(Trial("demo", scenes[:2], tmp_path / "run", options=[]))
    assert found["psnr"] > found["bicubic psnr"]
    assert found["edges"] > found["bicubic edges"] + 3
    assert found["sharpness"] > 2 * found["bicubic sharpness"]
    assert found["unmoved psnr"] > 30


def test_an_eight_bit_encoder_changes_little(runs: dict[str, RunFolder]) -> None:
    """Storing T5 in 8 bits moves pixels, but not what one sees."""
    pairs = zip(runs["float32"].images, runs["int8"].images, strict=True)
    gaps = [(read_picture(one) - read_picture(other)).abs().mean().item() for one, other in pairs]
    assert 0 < sorted(gaps)[PICTURES // 2] < 0.1


def test_words_that_the_demo_never_learnt_are_said(tmp_path: Path) -> None:
    """The run goes on, and names them and the words there are."""
    result = lm.generate("a red fox on a blue background", seed=1, size=64, steps=1, out=tmp_path)
    assert len(result.images) == 1
    (notice,) = result.notices
    assert "never learnt fox;" in notice
    assert "star" in notice
    assert "purple" in notice


def test_the_demos_own_words_are_not_complained_about(tmp_path: Path) -> None:
    """The bundled list is that of the language it was trained on."""
    words = json.loads((DEMO_FOLDER / "stage_1" / "tokenizer" / KNOWN_WORDS).read_text())
    assert words == known_words()
    rng = random.Random(1)
    captions = [random_caption(random_scene(rng), rng) for _ in range(3)]
    assert lm.generate(captions, seed=1, size=64, steps=1, out=tmp_path).notices == ()


def test_the_same_seed_draws_the_same_picture_on_any_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other hardware adds numbers in another order; the picture is the same to one of 256 levels."""
    pictures = []
    for threads in ("1", str(max(2, os.cpu_count() or 2))):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        result = lm.generate(
            "a green star on a white background", seed=3, size=64, steps=9, out=tmp_path / threads
        )
        pictures.append(numpy.asarray(Image.open(result.images[0])).astype(int))
    assert abs(pictures[0] - pictures[1]).max() <= 1


def test_the_bundle_is_small_and_laid_out_like_the_real_repositories() -> None:
    """Under 16 MB; 16-bit safetensors only, a sharded text encoder, a vocabulary by sentencepiece."""
    files = [path for path in DEMO_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 16e6
    names = {str(path.relative_to(DEMO_FOLDER)) for path in files}
    assert "stage_1/text_encoder/model.safetensors.index.fp16.json" in names
    assert "stage_1/tokenizer/spiece.model" in names
    assert "stage_1/tokenizer/tokenizer.json" not in names
    weights = [name for name in names if name.endswith(".safetensors")]
    plain = [name for name in weights if ".fp16" not in name]
    assert all("watermarker" in name for name in plain)
