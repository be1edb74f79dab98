"""Every published low-memory recipe that no longer runs works here; and when a repair may go."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.models.attention_processor import SlicedAttnAddedKVProcessor
from diffusers.pipelines.deepfloyd_if import IFSafetyChecker
from runs import plan_of, run_here
from safetensors.torch import load_file, save_file
from transformers.masking_utils import create_bidirectional_mask

from lowmem_if.errors import CheckpointError, DeviceError
from lowmem_if.planning.plan import Step
from lowmem_if.stages.stage import StageConfig, TextInputs
from lowmem_if.stages.stage_1 import Stage1
from lowmem_if.stages.text_encoder import TextCleaner, TextEncoder
from lowmem_if.weights.library_differences import t5_block
from lowmem_if.weights.loading import load_clip_text, load_safety_checker, load_text_encoder
from lowmem_if.weights.small_parts import load_tokenizer


def transformers_from(*version: int) -> bool:
    """Whether transformers is at least of this version."""
    return tuple(map(int, transformers.__version__.split(".")[:2])) >= version


def step(cascade: Path, component: str, *pins: str) -> Step:
    plan = plan_of(cascade, pins=pins)
    return next(step for step in plan.steps if step.component == component)


@pytest.fixture
def unrepaired(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's class as it comes."""
    if "all_tied_weights_keys" in vars(IFSafetyChecker):
        monkeypatch.delattr(IFSafetyChecker, "all_tied_weights_keys")


@pytest.fixture
def published_8bit(tiny: Path, tmp_path: Path) -> Path:
    """A cascade whose text encoder is the published 8-bit layout: int8, SCB, no word in the config."""
    cascade = tmp_path / "eight-bit"
    shutil.copytree(tiny, cascade)
    folder = cascade / "stage_1" / "text_encoder"
    quantised = load_text_encoder(
        tiny / "stage_1", storage="int8", compute="float32", device="cpu"
    ).state_dict()
    for file in folder.glob("model*"):
        file.unlink()
    published = {
        name: tensor.half() if "wo" not in name and tensor.dtype == torch.float32 and "SCB" not in name
        else tensor
        for name, tensor in quantised.items()
        if "weight_format" not in name and name != "encoder.embed_tokens.weight"
    }  # fmt: skip
    save_file(published, folder / "model.8bit.safetensors", metadata={"format": "pt"})
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    return cascade


def embed(cascade: Path, *pins: str, prompt: str = "a red circle on white") -> torch.Tensor:
    config = StageConfig(cascade / "stage_1", step(cascade, "text_encoder", *pins))
    encoder = TextEncoder.load(config)
    return next(encoder.run(TextInputs([prompt], 1), lambda _done, _total: None))


def relative_error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return ((ours.float() - exact).norm() / exact.norm()).item()


def test_the_safety_checker_loads_with_its_own_weights(tiny: Path, unrepaired: None) -> None:
    """IF's checker loads, with the tensors of its file."""
    checker = load_safety_checker(tiny / "stage_1" / "safety_checker")
    stored = load_file(tiny / "stage_1" / "safety_checker" / "model.fp16.safetensors")
    assert torch.equal(checker.state_dict()["p_head.bias"], stored["p_head.bias"].float())
    assert torch.equal(checker.state_dict()["w_head.weight"], stored["w_head.weight"].float())


def test_the_safety_checkers_repair_is_still_needed(tiny: Path, unrepaired: None) -> None:
    """If this fails, diffusers has mended IFSafetyChecker: delete `repaired_safety_checker`."""
    with pytest.raises(AttributeError, match="all_tied_weights_keys"):
        IFSafetyChecker.from_pretrained(tiny / "stage_1" / "safety_checker", variant="fp16")


def test_the_weights_kept_in_float32_are_those_of_transformers(tiny: Path) -> None:
    """Beside float16, `wo` is float32 and the rest float16, as `from_pretrained` has it."""
    ours = load_text_encoder(
        tiny / "stage_1", storage="float16", compute="float16", device="cpu"
    ).state_dict()
    theirs = transformers.T5EncoderModel.from_pretrained(
        tiny / "stage_1" / "text_encoder", variant="fp16", dtype=torch.float16
    ).state_dict()
    assert {name: t.dtype for name, t in ours.items()} == {n: t.dtype for n, t in theirs.items()}
    assert {ours[name].dtype for name in ours if ".wo." in name} == {torch.float32}


OLD = "a difference of transformers before this version"


@pytest.mark.skipif(transformers_from(5, 1), reason=OLD)
def test_before_5_1_wo_is_kept_in_bfloat16_as_later(tiny: Path) -> None:
    """Beside bfloat16 nothing is kept in float32. Once 5.3 is the oldest version that is supported,
    `kept_dtype` can ask transformers' own `_get_dtype_plan`."""
    encoder = load_text_encoder(
        tiny / "stage_1", storage="bfloat16", compute="bfloat16", device="cpu"
    )
    assert {t.dtype for t in encoder.state_dict().values()} == {torch.bfloat16}
    assert not hasattr(transformers.PreTrainedModel, "_get_dtype_plan")


@pytest.mark.skipif(transformers_from(5, 4), reason=OLD)
def test_before_5_4_clip_is_nested_and_prepared_under_other_names(tiny: Path) -> None:
    """Once 5.8 is the oldest version that is supported, `nested_name` and `pil_image_processor` can
    go."""
    clip = load_clip_text(tiny / "upscaler" / "text_encoder", dtype="float32", device="cpu")
    assert hasattr(clip, "text_model")
    assert not hasattr(transformers, "CLIPImageProcessorPil")


@pytest.mark.parametrize("padded", [0, 5])
def test_a_block_of_t5_gives_what_the_whole_encoder_gives(tiny: Path, padded: int) -> None:
    """Block by block, with a mask or without, the bits are those of the encoder's own pass. Once
    transformers 5.15 is the oldest version that is supported, `t5_block` can go."""
    encoder = load_text_encoder(
        tiny / "stage_1", storage="float32", compute="float32", device="cpu"
    ).encoder
    ids = torch.arange(3, 20)[None]
    attended = torch.ones_like(ids)
    attended[:, len(attended[0]) - padded :] = 0
    with torch.no_grad():
        states, bias = encoder.embed_tokens(ids), None
        mask = create_bidirectional_mask(encoder.config, states, attended)
        for block in encoder.block:
            states, bias = t5_block(block, states, mask, bias)
        whole = encoder(input_ids=ids, attention_mask=attended)[0]
        assert torch.equal(encoder.final_layer_norm(states), whole)
    assert transformers_from(5, 15) == transformers.T5PreTrainedModel._supports_sdpa


def test_the_documented_8bit_argument_is_still_refused(tiny: Path) -> None:
    """If this fails, `load_in_8bit=True` works again and the documented recipe with it."""
    with pytest.raises(TypeError):
        transformers.T5EncoderModel.from_pretrained(
            tiny / "stage_1" / "text_encoder", variant="fp16", load_in_8bit=True
        )


def test_8bit_from_16bit_files_quantises_all_but_wo(tiny: Path) -> None:
    """int8 at load: bitsandbytes layers, `wo` left alone, within 4 % of the float32 embeddings."""
    encoder = load_text_encoder(tiny / "stage_1", storage="int8", compute="float32", device="cpu")
    kinds = {name: type(m).__name__ for name, m in encoder.named_modules() if hasattr(m, "weight")}
    assert kinds["encoder.block.0.layer.0.SelfAttention.q"] == "Linear8bitLt"
    assert kinds["encoder.block.0.layer.1.DenseReluDense.wo"] == "Linear"
    error = relative_error(embed(tiny, "text_encoder=resident:int8"), embed(tiny))
    assert 0 < error < 0.04


def test_4bit_is_selectable_and_near(tiny: Path) -> None:
    """nf4 at load gives bitsandbytes 4-bit layers and embeddings that resemble the exact ones."""
    encoder = load_text_encoder(tiny / "stage_1", storage="nf4", compute="float32", device="cpu")
    assert any(type(module).__name__ == "Linear4bit" for module in encoder.modules())
    assert 0 < relative_error(embed(tiny, "text_encoder=resident:nf4"), embed(tiny)) < 0.3


def test_the_published_8bit_file_gives_the_right_embeddings(
    tiny: Path, published_8bit: Path
) -> None:
    """The 8-bit layout without a word in its config is read as what it is."""
    assert relative_error(embed(published_8bit, "text_encoder=resident:int8"), embed(tiny)) < 0.04


def test_transformers_still_misreads_the_8bit_file(tiny: Path, published_8bit: Path) -> None:
    """The recipe's own `variant="8bit"`: scales are ignored and the embeddings are garbage."""
    folder = published_8bit / "stage_1" / "text_encoder"
    plain, info = transformers.T5EncoderModel.from_pretrained(
        folder, variant="8bit", output_loading_info=True, dtype=torch.float32
    )
    assert any("SCB" in key for key in info["unexpected_keys"])
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        garbage = plain.eval()(ids)[0]
        exact = load_text_encoder(
            tiny / "stage_1", storage="float32", compute="float32", device="cpu"
        )(ids)[0]
    assert relative_error(garbage, exact) > 0.2


def test_a_folder_with_the_8bit_file_alone_is_planned_in_8bit(published_8bit: Path) -> None:
    """Where there is only the 8-bit file it is used; another type is refused with the way out."""
    assert plan_of(published_8bit).steps[0].config.storage_dtype == "int8"
    with pytest.raises(CheckpointError, match="pin text_encoder=resident:int8"):
        plan_of(published_8bit, pins=["text_encoder=resident:float32"])


def test_the_documented_device_map_is_still_refused(tiny: Path) -> None:
    """If this fails, `device_map="auto"` of the documented recipe works again in pipelines."""
    with pytest.raises(NotImplementedError):
        DiffusionPipeline.from_pretrained(
            tiny / "stage_1", variant="fp16", safety_checker=None, device_map="auto"
        )


def test_the_unet_keeps_its_fused_attention(tiny: Path) -> None:
    """No stage ever switches to sliced attention, which replaces the fused kernels."""
    stage = Stage1.load(StageConfig(tiny / "stage_1", step(tiny, "stage_1")))
    processors = stage.modules[0].attn_processors.values()
    assert processors
    assert not any(isinstance(p, SlicedAttnAddedKVProcessor) for p in processors)
    assert all("2_0" in type(p).__name__ for p in processors)


def test_the_tokenizer_reads_the_vocabulary_from_spiece_model_alone(tiny: Path) -> None:
    """The folder's own vocabulary is used, and known words are known."""
    tokenizer = load_tokenizer(tiny / "stage_1" / "tokenizer")
    words = tokenizer.convert_ids_to_tokens(tokenizer("red circle").input_ids)
    assert "".join(words[:-1]).replace("▁", " ").strip() == "red circle"


def test_a_vocabulary_that_transformers_made_up_is_an_error(tiny: Path, tmp_path: Path) -> None:
    """A tokenizer folder without its vocabulary is refused, not replaced by a dummy."""
    folder = tmp_path / "tokenizer"
    shutil.copytree(tiny / "stage_1" / "tokenizer", folder)
    (folder / "spiece.model").unlink()
    with pytest.raises(CheckpointError, match=r"spiece\.model is missing"):
        load_tokenizer(folder)


@pytest.mark.parametrize("strategy", ["model_offload", "sequential_offload"])
def test_offload_without_an_accelerator_is_told(tiny: Path, strategy: str) -> None:
    """Pinning an offload on a machine without an accelerator says what to pin instead."""
    with pytest.raises(DeviceError, match=r"none: pin stage_1=resident"):
        plan_of(tiny, pins=[f"stage_1={strategy}"])


def test_what_exceeds_77_tokens_is_told_in_our_words(tiny: Path, tmp_path: Path) -> None:
    """A prompt that is too long runs, and a notice holds exactly the end that was cut off."""
    prompt = "red " * 76 + "green star"
    folder = run_here(plan_of(tiny, prompt, size=64), tmp_path / "run")
    assert folder.images
    (notice,) = folder.notices
    assert "77 tokens" in notice
    assert "CLIP" not in notice
    cut = TextCleaner(tiny / "stage_1").clean(prompt).cut
    assert cut.replace(" ", "") == "greenstar"
    assert cut in notice


def test_a_prompt_of_exactly_77_tokens_is_not_cut(tiny: Path) -> None:
    """76 tokens and the end mark fit."""
    assert TextCleaner(tiny / "stage_1").clean("red " * 76).cut == ""
    assert TextCleaner(tiny / "stage_1").clean("red " * 77).cut != ""
