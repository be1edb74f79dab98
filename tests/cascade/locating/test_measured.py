"""How a module's parameters are counted from the headers of its files."""

from __future__ import annotations

from lowmem_if.cascade.locating.measured import summarise
from lowmem_if.cascade.safetensors_header import TensorHeader


def half(*shape: int) -> TensorHeader:
    size = 2
    for side in shape:
        size *= side
    return TensorHeader("F16", shape, size)


def test_tensors_of_the_text_encoder_are_sorted_by_what_quantising_does_to_them() -> None:
    """Attention and input projections are quantised, `wo` is kept, the rest is neither."""
    block = "encoder.block.3.layer"
    tensors = {
        "shared.weight": half(100, 8),
        **{f"{block}.0.SelfAttention.{k}.weight": half(8, 8) for k in "qkvo"},
        f"{block}.0.SelfAttention.relative_attention_bias.weight": half(32, 2),
        f"{block}.0.layer_norm.weight": half(8),
        f"{block}.1.DenseReluDense.wi_0.weight": half(20, 8),
        f"{block}.1.DenseReluDense.wi_1.weight": half(20, 8),
        f"{block}.1.DenseReluDense.wo.weight": half(8, 20),
        "encoder.final_layer_norm.weight": half(8),
    }
    found = summarise(tensors)
    assert found.linear == 4 * 64 + 2 * 160
    assert found.linear_rows == 4 * 8 + 2 * 20
    assert found.kept == 160
    assert found.other == 800 + 64 + 8 + 8
    assert found.parameters == sum(tensor.numbers for tensor in tensors.values())


def test_a_tied_embedding_counts_once() -> None:
    """T5 ties `shared` and `embed_tokens`: some files hold it twice, memory does not."""
    both = {"shared.weight": half(100, 8), "encoder.embed_tokens.weight": half(100, 8)}
    assert summarise(both).parameters == 800
    assert summarise({"encoder.embed_tokens.weight": half(100, 8)}).parameters == 800


def test_layers_of_other_networks_are_never_quantised() -> None:
    """A UNet's or CLIP's projections are neither quantised nor kept, whatever they are called."""
    tensors = {
        "down_blocks.0.attentions.0.to_q.weight": half(8, 8),
        "text_model.encoder.layers.0.self_attn.q_proj.weight": half(8, 8),
        "mid_block.q.weight": half(8, 8),
    }
    found = summarise(tensors)
    assert (found.linear, found.kept, found.linear_rows) == (0, 0, 0)
    assert found.other == 192
