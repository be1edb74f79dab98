"""Encoding alone: what a run would encode, resumed after a kill, and few passes over the weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from embedding_dicts import SUFFIXES
from killing import work_until
from runs import plan_of, run_here

import lowmem_if as lm
from lowmem_if.cascade.catalog import TEXT_ENCODER
from lowmem_if.cascade.modes import EMBED
from lowmem_if.engine.events import Event
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.planning.estimates import activations
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.weights.embedding_files.embedding_tensors import load_embeddings
from lowmem_if.weights.files.checkpoint import Checkpoint
from lowmem_if.weights.files.stored import Stored

PROMPTS = ["a red circle", "a blue star", "a green square / left"]


def embed_plan(cascade: Path, prompts: list[str], **options: Any) -> lm.Plan:
    return plan_of(cascade, [*prompts, ""], mode=EMBED, size=64, **options)


def drawn(events: list[Event]) -> int:
    return sum(event.kind == "drawing" for event in events)


@pytest.fixture
def options(tiny: Path) -> dict[str, Any]:
    return {"cascade": tiny, "device": "cpu", "ram": "8GB"}


def test_the_plan_has_no_other_step_than_the_text_encoder(tiny: Path, tmp_path: Path) -> None:
    """No other network of the cascade need be on this disk."""
    alone = tmp_path / "cascade"
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(tiny / "stage_1" / name, alone / "stage_1" / name)
    plan = embed_plan(alone, PROMPTS)
    assert [step.component for step in plan.steps] == [TEXT_ENCODER]
    assert lm.Plan.from_json(plan.to_json()) == plan
    folder = run_here(plan, tmp_path / "run")
    assert folder.complete
    assert not folder.images


def test_only_a_request_that_encodes_may_have_the_mode(tiny: Path) -> None:
    """A row of a batch draws a picture."""
    with pytest.raises(lm.RequestError, match="unknown mode 'embed': use one of text, vary"):
        lm.make_request(lines=[{"prompt": "a", "mode": "embed"}])
    assert ImageSpec(0, "", 0, mode=EMBED).stages == ()


@pytest.mark.worker
@pytest.mark.parametrize("out", [None, *(f"new/prompts{suffix}" for suffix in SUFFIXES)])
def test_embeddings_are_those_of_a_run(
    tiny: Path, tmp_path: Path, options: dict[str, Any], out: str | None
) -> None:
    """As a dictionary, and in the file; the empty prompt is there, and no folder is left."""
    found = lm.embed([*PROMPTS, PROMPTS[0]], out and tmp_path / out, dtype="float32", **options)
    assert list(found) == [*PROMPTS, ""]
    folder = run_here(embed_plan(tiny, PROMPTS), tmp_path / "run")
    for prompt, tensor in found.items():
        assert tensor.shape == (1, 77, 64)
        assert torch.equal(tensor, load_embeddings_of(folder, prompt))
    if out is not None:
        assert [file.name for file in (tmp_path / "new").iterdir()] == [Path(out).name]
        again = load_embeddings(tmp_path / out)
        assert all(torch.equal(again[prompt], found[prompt]) for prompt in found)


def load_embeddings_of(folder: RunFolder, prompt: str) -> torch.Tensor:
    from lowmem_if.weights.files.tensor_file import load_tensor

    tensor = load_tensor(folder.embedding_file(prompt))
    assert tensor is not None
    return tensor


@pytest.mark.worker
def test_the_default_is_the_form_that_courses_use(tmp_path: Path, options: dict[str, Any]) -> None:
    """A dictionary of float16 tensors; one prompt may be a text alone."""
    found = lm.embed("a red circle", tmp_path / "a.pth", **options)
    read = torch.load(tmp_path / "a.pth", weights_only=True)
    assert list(read) == ["a red circle", ""]
    for prompt, tensor in read.items():
        assert (tensor.dtype, tuple(tensor.shape)) == (torch.float16, (1, 77, 64))
        assert torch.equal(tensor, found[prompt])


@pytest.mark.worker
def test_an_interrupted_call_is_resumed_by_the_same_call(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is encoded is kept next to the file; another call may not mix with it."""
    file, events = tmp_path / "a.npz", list[Event]()

    def interrupt(event: Event) -> None:
        events.append(event)
        if drawn(events) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lm.embed(PROMPTS, file, report=interrupt, **options)
    assert not file.exists()
    monkeypatch.setenv("LOWMEM_IF_CACHE", str(tmp_path / "another cache"))
    with pytest.raises(lm.EmbeddingsError, match=r"a\.npz\.run is left from another `embed`"):
        lm.embed(PROMPTS[:2], file, **options)
    events.clear()
    lm.embed(PROMPTS, file, report=events.append, **options)
    assert 0 < drawn(events) < len(PROMPTS)
    assert set(load_embeddings(file)) == {*PROMPTS, ""}
    assert not (tmp_path / "a.npz.run").exists()


@pytest.mark.worker
def test_a_killed_run_resumes_with_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    """SIGKILL after the second prompt: the others are encoded, and all are as in one go."""
    plan = embed_plan(tiny, PROMPTS)
    whole = run_here(plan, tmp_path / "whole")
    folder = RunFolder.for_plan(tmp_path / "killed", plan)
    code, events = work_until(folder.path, 4)
    assert code == -9
    before = len(list((folder.path / "embeds").iterdir()))
    code, rest = work_until(folder.path)
    assert code == 0
    assert before + sum(kind == "drawing" for kind, _ in rest) >= len(PROMPTS)
    for prompt in (*PROMPTS, ""):
        files = [one.embedding_file(prompt) for one in (whole, folder)]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert events


def test_a_streaming_encoder_is_read_once_for_256_prompts(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So 1,000 prompts read it four times. Counted in bytes, here with 16 prompts a pass."""
    assert activations.texts_together(1000) == 256
    monkeypatch.setattr(activations, "TEXTS_A_PASS", 16)
    plan = embed_plan(tiny, [f"a {number}" for number in range(61)], pins=["text_encoder=stream"])
    assert plan.steps[0].config.batch == 16
    read: list[int] = []
    original = Checkpoint.read_into

    def counting(self: Any, target: memoryview, stored: Stored, start: int = 0) -> None:
        read.append(len(target))
        original(self, target, stored, start)

    monkeypatch.setattr(Checkpoint, "read_into", counting)
    run_here(plan, tmp_path / "run")
    size = plan.steps[0].estimate.read_bytes
    assert 3 * size < sum(read) <= 4 * size


@pytest.mark.parametrize(
    ("prompts", "given", "words"),
    [
        (["a", "  "], {}, "a prompt is blank"),
        (["a", 7], {}, "a prompt must be text, not int"),
        (["a"], {"dtype": "float64"}, "dtype 'float64' is not one of float16 and float32"),
        (["a"], {"out": "a.txt"}, "its name must end in .pth, .pt, .safetensors, .npz"),
        (["a"], {"dtpye": "float16"}, "embed has no option 'dtpye': did you mean 'dtype'"),
    ],
)
def test_what_cannot_be_encoded_is_refused_first(
    prompts: Any, given: dict[str, Any], words: str
) -> None:
    """Before anything is measured or loaded."""
    with pytest.raises(lm.LowmemError) as caught:
        lm.embed(prompts, **given)
    assert words in str(caught.value)


def test_no_prompt_of_a_file_is_lost(tmp_path: Path) -> None:
    """A file with other prompts, or something else, is not replaced."""
    torch.save({"a fox": torch.zeros(1, 77, 8), "b": torch.zeros(1, 77, 8)}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_text("mine")
    before = [file.read_bytes() for file in sorted(tmp_path.glob("*.pth"))]
    with pytest.raises(
        lm.EmbeddingsError, match="also holds 'a fox' and 1 more, which would be lost"
    ):
        lm.embed("a", tmp_path / "a.pth")
    with pytest.raises(lm.EmbeddingsError, match="give --out another name, or delete this file"):
        lm.embed("a", tmp_path / "b.pth")
    assert [file.read_bytes() for file in sorted(tmp_path.glob("*.pth"))] == before
