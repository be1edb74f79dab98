"""Runs from a file of embeddings: the bits of runs with T5, which is neither planned nor loaded."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from embedding_dicts import SUFFIXES, encoded, made_up, write
from PIL import Image
from runs import CPU, plan_of, run_here
from safetensors.torch import load_file

from lowmem_if.cascade.catalog import STAGE_1, TEXT_ENCODER
from lowmem_if.engine.enlargement import continued
from lowmem_if.engine.events import Event
from lowmem_if.engine.run_folder.embedding_copies import check_embeddings
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.runner import continue_run
from lowmem_if.engine.worker.executor import work
from lowmem_if.errors import CascadeError, EmbeddingsError, RunFolderError
from lowmem_if.planning.plan import Plan, make_plan
from lowmem_if.request.batch_request import request_of

RED, BLUE, STYLE = "a red circle", "a blue star / left", "an oil painting"


@pytest.fixture(scope="module")
def without_t5(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny cascade with neither text encoder nor tokenizer."""
    cascade = Path(shutil.copytree(tiny, tmp_path_factory.mktemp("without") / "cascade"))
    for folder in ("text_encoder", "tokenizer"):
        shutil.rmtree(cascade / "stage_1" / folder)
    return cascade


@pytest.fixture(scope="module")
def file(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embeddings of all texts in this module."""
    folder = tmp_path_factory.mktemp("embeddings")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWMEM_IF_CACHE", str(folder / "cache"))
        return encoded(tiny, folder / "prompts.pth", RED, BLUE, STYLE, "blurry")


def assert_same_bits(ours: Path, theirs: Path) -> None:
    """The same tensors of every stage, and the same finished pictures."""
    tensors = sorted(theirs.glob("stage_*/*.safetensors"))
    assert tensors
    for tensor in tensors:
        mine = load_file(ours / tensor.relative_to(theirs))["tensor"]
        assert torch.equal(mine, load_file(tensor)["tensor"])
    for picture in theirs.glob("????.png"):
        with Image.open(picture) as theirs_open, Image.open(ours / picture.name) as ours_open:
            assert ours_open.tobytes() == theirs_open.tobytes()


def components(plan: Plan) -> list[str]:
    return [step.component for step in plan.steps]


@pytest.mark.slow
def test_pictures_are_those_of_a_run_with_t5(
    tiny: Path, without_t5: Path, file: Path, tmp_path: Path
) -> None:
    """Both stages, guided by a negative prompt, from every format; no text encoder is on this disk."""
    options: dict[str, Any] = {"negative_prompt": "blurry", "size": 256}
    plain = run_here(plan_of(tiny, [RED, BLUE], **options), tmp_path / "plain")
    assert TEXT_ENCODER in components(plain.plan)
    read = torch.load(file, weights_only=True)
    for suffix in SUFFIXES[1:]:
        embeds = write(tmp_path / f"prompts{suffix}", read)
        plan = plan_of(without_t5, [RED, BLUE], embeds=embeds, **options)
        assert TEXT_ENCODER not in components(plan)
        events: list[Event] = []
        folder = run_here(plan, tmp_path / f"run{suffix}", events.append)
        assert folder.complete
        assert TEXT_ENCODER not in [event.component for event in events]
        assert_same_bits(folder.path, plain.path)


def test_float16_is_enough_where_the_stages_compute_in_float16_or_less(
    tiny: Path, tmp_path: Path
) -> None:
    """The stages round embeddings to their own type: what the file rounds to it is the same."""
    half = encoded(tiny, tmp_path / "half.pth", RED, dtype="float16")
    full = encoded(tiny, tmp_path / "full.pth", RED)
    read = torch.load(half, weights_only=True)[RED]
    assert torch.equal(read, torch.load(full, weights_only=True)[RED].half())


@pytest.mark.slow
@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": RED, "mode": "vary", "style_prompt": STYLE, "strength": 0.8}],
        [{"prompt": BLUE, "mode": "inpaint", "mask": "mask.png"}],
        [{"prompt": RED, "mode": "upscale"}],
        [{"prompt": RED}, {"style_prompt": STYLE, "mode": "vary"}, {"prompt": RED, "size": 256}],
    ],
)
def test_every_mode_takes_embeddings(
    tiny: Path, file: Path, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    """Rows of a batch that vary with a style, repaint and enlarge."""
    for name in ("own.png", "mask.png"):
        Image.linear_gradient("L").resize((48, 48)).save(tmp_path / name)
    rows = [
        ({"image": "own.png"} if row.get("mode", "text") != "text" else {}) | row for row in rows
    ]
    pair = []
    for name, embeds in (("plain", None), ("embeds", file)):
        size = 256 if rows[0].get("mode") == "upscale" else 64
        request, bad = request_of(
            rows, seed=1, steps=2, cascade=str(tiny), size=size, embeds=embeds
        )
        assert not bad
        pair.append(run_here(make_plan(CPU, request, prefer="exact"), tmp_path / name).path)
    assert_same_bits(pair[1], pair[0])


@pytest.mark.slow
def test_a_run_never_needs_the_file_again(tiny: Path, file: Path, tmp_path: Path) -> None:
    """Begun, then the file is lost: it is resumed, and its pictures are enlarged in a new folder."""
    own = Path(shutil.copy(file, tmp_path / "own.pth"))
    options: dict[str, Any] = {"negative_prompt": "blurry", "guidance_scale": (1, 4, 1)}
    plan = plan_of(tiny, RED, embeds=own, size=64, **options)
    folder = RunFolder.for_plan(tmp_path / "run", plan)
    own.unlink()
    work(folder, lambda _event: None)
    assert folder.reload().complete
    larger = continued(folder.reload(), [0], 256, CPU, tmp_path / "larger")
    assert TEXT_ENCODER not in components(larger.plan)
    work(larger, lambda _event: None)
    whole = run_here(plan_of(tiny, RED, size=256, **options), tmp_path / "whole")
    assert_same_bits(larger.path, whole.path)


def test_a_lost_copy_is_made_again_or_reported(
    tiny: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the same file if it is still there; else the error says which file it was."""
    own = Path(shutil.copy(file, tmp_path / "own.pth"))
    folder = RunFolder.for_plan(tmp_path / "run", plan_of(tiny, RED, embeds=own, size=64))
    copy = folder.embedding_file(RED)
    content = copy.read_bytes()
    copy.write_bytes(content[:-1])

    class Worker:
        """Works in this process."""

        def work(self, folder: RunFolder, _lock: int, **_options: Any) -> None:
            work(folder, lambda _event: None)

    result = continue_run(folder, Worker(), report=lambda _event: None)  # type: ignore[arg-type]
    assert copy.read_bytes() == content
    assert result.images
    copy.unlink()
    own.unlink()
    shutil.rmtree(folder.path / "stage_1")
    folder.image_file(folder.plan.request.images[0]).unlink()
    with pytest.raises(RunFolderError, match=r"missing or broken: put .*own\.pth back as it was"):
        continue_run(folder.reload(), Worker(), report=lambda _event: None)  # type: ignore[arg-type]


def test_copies_of_an_interrupted_start_do_not_count(
    tiny: Path, file: Path, tmp_path: Path
) -> None:
    """They may be another file's."""
    begun = RunFolder.for_plan(tmp_path / "run", plan_of(tiny, RED, embeds=file, size=64))
    copy = begun.embedding_file(RED)
    first = copy.read_bytes()
    begun.record_file.unlink()
    other = write(tmp_path / "other.npz", made_up(RED, "", width=64))
    RunFolder.for_plan(tmp_path / "run", plan_of(tiny, RED, embeds=other, size=64))
    assert copy.read_bytes() != first
    assert torch.equal(load_file(copy)["tensor"], made_up(RED, "", width=64)[RED])


def test_the_request_knows_the_file_by_its_content(tiny: Path, file: Path, tmp_path: Path) -> None:
    """A moved file is the same request; another content in the same place is another."""
    moved = Path(shutil.copy(file, tmp_path / "moved.pth"))
    plan = plan_of(tiny, RED, embeds=file, size=64)
    assert Plan.from_json(plan.to_json()) == plan
    folder = RunFolder.for_plan(tmp_path / "run", plan)
    folder.check_same(plan_of(tiny, RED, embeds=moved, size=64))
    write(moved, made_up(RED, "", width=64))
    with pytest.raises(RunFolderError, match="begun for another request"):
        folder.check_same(plan_of(tiny, RED, embeds=moved, size=64))
    with pytest.raises(RunFolderError, match="begun for another request"):
        folder.check_same(plan_of(tiny, RED, size=64))


def test_a_file_that_does_not_suit_ends_the_run_before_it_begins(
    tiny: Path, file: Path, tmp_path: Path
) -> None:
    """A prompt that it lacks, and embeddings of another encoder: nothing is drawn or recorded."""
    wide = write(tmp_path / "wide.pth", made_up(RED, "", width=4096))
    for embeds, words in (
        (file, "no embedding of the prompt 'a red circl'; it has 'a red circle', 'a blue star"),
        (wide, r"shape \(1, 77, 4096\), and this cascade's text encoder makes \(1, 77, 64\)"),
    ):
        prompt = RED if embeds == wide else RED[:-1]
        plan = plan_of(tiny, prompt, embeds=embeds, size=64)
        for check in (check_embeddings, lambda plan: RunFolder.for_plan(tmp_path / "run", plan)):
            with pytest.raises(EmbeddingsError, match=words):
                check(plan)
        assert not RunFolder.begun(tmp_path / "run")


def test_the_negative_prompt_is_needed_where_there_is_guidance(tiny: Path, tmp_path: Path) -> None:
    """It is the empty prompt if none is given."""
    only = write(tmp_path / "only.pth", made_up(RED, width=64))
    plan = plan_of(tiny, RED, embeds=only, size=64)
    with pytest.raises(EmbeddingsError, match="no embedding of the empty prompt ''"):
        check_embeddings(plan)
    with pytest.raises(EmbeddingsError, match="no embedding of the prompt 'blurry'"):
        check_embeddings(plan_of(tiny, RED, embeds=only, size=64, negative_prompt="blurry"))
    unguided = plan_of(tiny, RED, embeds=only, size=64, guidance_scale=1)
    assert run_here(unguided, tmp_path / "run").complete


def test_a_file_that_changed_after_it_was_given_is_refused(
    tiny: Path, file: Path, tmp_path: Path
) -> None:
    """The plan is for its old content."""
    own = Path(shutil.copy(file, tmp_path / "own.pth"))
    plan = plan_of(tiny, RED, embeds=own, size=64)
    write(own, made_up(RED, "", width=64))
    with pytest.raises(EmbeddingsError, match="has changed since it was given"):
        RunFolder.for_plan(tmp_path / "run", plan)


def test_published_cascades_are_planned_without_t5(tmp_path: Path) -> None:
    """Before anything is downloaded, with the width of T5-XXL."""
    embeds = write(tmp_path / "a.safetensors", made_up(RED, "", width=4096), "float16")
    plain = plan_of("if-m", RED, size=64)
    plan = plan_of("if-m", RED, size=64, embeds=embeds)
    assert components(plan) == [STAGE_1, "postprocess"]
    assert plan.download_bytes < plain.download_bytes - 9e9
    check_embeddings(plan)
    with pytest.raises(CascadeError, match=r"`lowmem-if fetch if-m --embeds .*a\.safetensors`"):
        run_here(plan, tmp_path / "run")
    narrow = write(tmp_path / "b.pth", made_up(RED, "", width=128))
    with pytest.raises(EmbeddingsError, match=r"makes \(1, 77, 4096\)"):
        check_embeddings(
            replace(plan, request=plan_of("if-m", RED, size=64, embeds=narrow).request)
        )
