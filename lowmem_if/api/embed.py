"""Prompt embeddings: encode prompts with T5 alone, and read files of embeddings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Unpack

from lowmem_if.engine.embedding import embed_into, embed_texts
from lowmem_if.engine.options import EmbedOptions, check_options
from lowmem_if.weights.embedding_files.embedding_tensors import Embeddings, load_embeddings


def embed(
    prompts: str | Iterable[str], out: str | Path | None = None, **options: Unpack[EmbedOptions]
) -> Embeddings:
    """Encode prompts with the text encoder alone, planned for this machine.

    The result is what `IFPipeline` takes as `prompt_embeds`, and what `generate` and its siblings take
    as `embeds` if it is in a file.

    Args:
        prompts: one text or several. The empty prompt is always added: it is the unconditional one.
        out: a file for the embeddings: `.pth` or `.pt` (readable with `torch.load(weights_only=True)`),
            `.safetensors` or `.npz`. The same call with the same `out` resumes after a kill. None:
            no file is kept.
        options: see `EmbedOptions`: among them `cascade`, `dtype`, `ram`, `vram` and `pins`.

    Returns:
        Prompt -> tensor of shape (1, 77, width) on the CPU; the width is 4096 for T5-XXL.

    Raises:
        RequestError: an unknown option, or a prompt that is blank.
        EmbeddingsError: the file cannot be written, or holds other prompts, which would be lost.
        LowmemError: see the tree in `lowmem_if.errors`.
    """
    check_options("embed", options, EmbedOptions)
    if out is not None:
        return load_embeddings(embed_into(prompts, Path(out).expanduser(), **options).file)
    return embed_texts(prompts, **options)
