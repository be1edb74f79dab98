"""Prompt embeddings for tests: made up, or encoded by the tiny cascade in this very process."""

from __future__ import annotations

from pathlib import Path

import torch
from runs import plan_of, run_here

from lowmem_if.cascade.modes import EMBED
from lowmem_if.weights.embedding_files.embedding_writer import write_embeddings
from lowmem_if.weights.embedding_files.stored_embedding import DTYPES, StoredEmbedding

SUFFIXES = (".pth", ".pt", ".safetensors", ".npz")


def made_up(
    *prompts: str, width: int = 8, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """An embedding of other numbers for each prompt."""
    generator = torch.Generator().manual_seed(5)
    return {p: torch.randn(1, 77, width, generator=generator).to(dtype) for p in prompts}


def stored(tensor: torch.Tensor) -> StoredEmbedding:
    spelled = DTYPES[str(tensor.dtype).removeprefix("torch.")]
    content = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return StoredEmbedding(spelled, tuple(tensor.shape), content)


def write(file: Path, embeddings: dict[str, torch.Tensor], dtype: str = "float32") -> Path:
    """Write embeddings with the package's own writer."""
    scratch = file.with_name("scratch")
    scratch.mkdir(exist_ok=True)
    write_embeddings(file, list(embeddings), lambda p: stored(embeddings[p]), dtype, scratch)
    return file


def encoded(cascade: Path, file: Path, *prompts: str, dtype: str = "float32") -> Path:
    """A file with what the cascade's text encoder makes of prompts, and of the empty one."""
    plan = plan_of(cascade, [*prompts, ""], mode=EMBED, size=64)
    folder = run_here(plan, file.with_name(f"{file.name}.run"))
    found = {
        prompt: StoredEmbedding.from_tensor_file(folder.embedding_file(prompt))
        for prompt in (*prompts, "")
    }
    write_embeddings(file, list(found), lambda prompt: found[prompt], dtype, folder.path)
    return file
