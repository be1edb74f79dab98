"""Embeddings are kept across runs, and never served to a request they were not made for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import kinds, plan_of, run_here

from lowmem_if.cascade.catalog import TEXT_ENCODER
from lowmem_if.engine.events import Event
from lowmem_if.engine.worker import embedding_cache
from lowmem_if.engine.worker.embedding_cache import EmbeddingCache
from lowmem_if.planning.plan import Plan

FILES = "cache/embeds"


def loads_t5(plan: Plan, path: Path) -> bool:
    """Whether a run of the plan had to load the text encoder."""
    events: list[Event] = []
    run_here(plan, path, events.append)
    return TEXT_ENCODER in kinds(events, "loading")


def test_a_prompt_is_encoded_once_across_runs(tiny: Path, tmp_path: Path) -> None:
    """A second run with the same prompt and another seed never loads T5, and its result is the same."""
    assert loads_t5(plan_of(tiny, size=64, seed=1), tmp_path / "a")
    assert not loads_t5(plan_of(tiny, size=64, seed=2), tmp_path / "b")
    assert not loads_t5(plan_of(tiny, size=64, seed=1), tmp_path / "c")
    name = "stage_1/0000.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()


def test_texts_that_clean_alike_share_an_embedding(tiny: Path, tmp_path: Path) -> None:
    """The key holds the cleaned text: case and outer blanks do not matter to IF."""
    assert loads_t5(plan_of(tiny, "a red circle", size=64), tmp_path / "a")
    assert not loads_t5(plan_of(tiny, "  A Red Circle ", size=64), tmp_path / "b")


def test_another_storage_is_encoded_anew(tiny: Path, tmp_path: Path) -> None:
    """float32 embeddings are not served to an int8 request."""
    assert loads_t5(plan_of(tiny, size=64), tmp_path / "a")
    assert loads_t5(plan_of(tiny, size=64, pins=["text_encoder=resident:int8"]), tmp_path / "b")


def test_other_weights_in_the_same_place_are_encoded_anew(tiny: Path, tmp_path: Path) -> None:
    """The key holds the encoder's content, not its path or its dates."""
    cascade = Path(shutil.copytree(tiny, tmp_path / "cascade"))
    assert loads_t5(plan_of(cascade, size=64), tmp_path / "a")
    shard = cascade / "stage_1/text_encoder/model.fp16-00003-of-00003.safetensors"
    dates = shard.stat()
    content = bytearray(shard.read_bytes())
    content[-2:] = b"\0\0"
    shard.write_bytes(content)
    os.utime(shard, ns=(dates.st_atime_ns, dates.st_mtime_ns))
    assert loads_t5(plan_of(cascade, size=64), tmp_path / "b")


def test_the_same_weights_elsewhere_are_recognised(tiny: Path, tmp_path: Path) -> None:
    """A copy of the cascade is the same encoder."""
    assert loads_t5(plan_of(tiny, size=64), tmp_path / "a")
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    assert not loads_t5(plan_of(copy, size=64), tmp_path / "b")


def test_another_tokenizer_is_encoded_anew(tiny: Path, tmp_path: Path) -> None:
    """The vocabulary is part of the key."""
    cascade = Path(shutil.copytree(tiny, tmp_path / "cascade"))
    assert loads_t5(plan_of(cascade, size=64), tmp_path / "a")
    spiece = cascade / "stage_1/tokenizer/spiece.model"
    spiece.write_bytes(spiece.read_bytes() + b"\n\x00")
    step = plan_of(cascade).steps[0]
    from lowmem_if.cascade.locate import locate
    from lowmem_if.engine.worker.steps.step_run import weights_fingerprint

    before = weights_fingerprint(locate(str(tiny)), step)
    assert weights_fingerprint(locate(str(cascade)), step) != before


@pytest.mark.parametrize("damage", [b"", b"x" * 40])
def test_a_damaged_entry_is_made_again(tiny: Path, tmp_path: Path, damage: bytes) -> None:
    """A broken cache file costs an encoding, nothing else."""
    run_here(plan_of(tiny, size=64), tmp_path / "a")
    for file in (tmp_path / FILES).iterdir():
        file.write_bytes(damage)
    assert loads_t5(plan_of(tiny, size=64), tmp_path / "b")


@pytest.mark.parametrize(
    "change",
    [
        {"strategy": "stream"}, {"storage_dtype": "int8"}, {"compute_dtype": "bfloat16"},
        {"device": "cuda:0"},
    ],
)  # fmt: skip
def test_every_part_of_the_setting_is_in_the_key(
    tiny: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    """Strategy, storage, compute type and kind of device each make another entry."""
    step = plan_of(tiny).steps[0]
    EmbeddingCache("encoder", step, tmp_path).put("a red circle", torch.ones(1, 77, 8))
    assert EmbeddingCache("encoder", step, tmp_path).get("a red circle") is not None
    assert EmbeddingCache("other", step, tmp_path).get("a red circle") is None
    assert EmbeddingCache("encoder", step, tmp_path).get("a red circl") is None
    changed = EmbeddingCache("encoder", step.with_config(**change), tmp_path)
    assert changed.get("a red circle") is None


def test_embeddings_of_an_older_format_are_not_read(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an earlier release kept under the same encoder, text and types is made again."""
    step = plan_of(tiny).steps[0]
    monkeypatch.setattr(embedding_cache, "_FORMAT", embedding_cache._FORMAT - 1)
    EmbeddingCache("encoder", step, tmp_path).put("a red circle", torch.ones(1, 77, 8))
    assert EmbeddingCache("encoder", step, tmp_path).get("a red circle") is not None
    monkeypatch.undo()
    assert EmbeddingCache("encoder", step, tmp_path).get("a red circle") is None


def test_the_longest_unused_entries_leave_first(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache stays within its limit and keeps what was used last."""
    cache = EmbeddingCache("encoder", plan_of(tiny).steps[0], tmp_path)
    entry = torch.ones(1, 77, 8)
    for number, text in enumerate("abc"):
        cache.put(text, entry)
        file, _ = cache._file(text)
        os.utime(file, (number, number))
    cache.get("a")
    monkeypatch.setattr(embedding_cache, "_KEEP_BYTES", 3 * file.stat().st_size)
    cache.put("d", entry)
    assert [text for text in "abcd" if cache.get(text) is not None] == ["a", "c", "d"]


def test_a_cache_that_cannot_be_written_costs_no_run(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends with its pictures and a notice that nothing was kept."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOWMEM_IF_CACHE", str(tmp_path / "file"))
    folder = run_here(plan_of(tiny, size=64), tmp_path / "run")
    assert folder.images
    assert "are not kept" in folder.notices[0]
