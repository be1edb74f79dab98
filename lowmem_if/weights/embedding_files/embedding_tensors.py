"""Prompt embeddings as tensors of torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from lowmem_if.weights.embedding_files.embedding_reader import opened_embeddings
from lowmem_if.weights.embedding_files.stored_embedding import StoredEmbedding

if TYPE_CHECKING:
    import torch

Embeddings: TypeAlias = "dict[str, torch.Tensor]"
"""Prompt -> its embedding, (1, 77, width)."""


def load_embeddings(file: str | Path) -> Embeddings:
    """Read a file of prompt embeddings: `.pth`, `.pt`, `.safetensors` or `.npz`.

    Nothing in the file is ever run as code.

    Returns:
        Prompt -> tensor of shape (1, 77, width) on the CPU, in the file's number type.

    Raises:
        EmbeddingsError: the file is missing, broken, or holds something else than such tensors.
    """
    with opened_embeddings(Path(file).expanduser()) as opened:
        return {prompt: as_tensor(opened.read(prompt)) for prompt in opened.prompts}


def as_tensor(stored: StoredEmbedding) -> torch.Tensor:
    """A stored embedding as a tensor with memory of its own."""
    import torch

    dtypes = {"F16": torch.float16, "F32": torch.float32, "BF16": torch.bfloat16}
    flat = torch.frombuffer(bytearray(stored.content), dtype=dtypes[stored.dtype])
    return flat.reshape(stored.shape)
