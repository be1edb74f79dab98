"""Make a tiny cascade of IF's very own classes with random weights, in the IF repositories' layout.

    python tests/helpers/tiny_cascade.py DIR

fp16 files, a sharded text encoder with its index, `spiece.model` only, safety checker, watermarker.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import sentencepiece
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from diffusers.pipelines.deepfloyd_if import IFSafetyChecker, IFWatermarker
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    T5Config,
    T5EncoderModel,
)

TEXT_WIDTH = 64
WORDS = (
    "a red green blue yellow orange purple white black circle square triangle diamond star cross "
    "on in the and background small large left right top bottom center of with photo picture"
).split()


def make_tiny_cascade(folder: Path, *, sides: tuple[int, int] = (64, 256), seed: int = 0) -> Path:
    """Write the cascade into `folder`; `sides` are the pixels of stages 1 and 2."""
    torch.manual_seed(seed)
    _stage_1(folder / "stage_1", sides[0])
    _stage_2(folder / "stage_2", sides[1])
    _upscaler(folder / "upscaler")
    return folder


def _stage_1(root: Path, side: int) -> None:
    _tokenizer(root / "tokenizer")
    _save(_t5(), root / "text_encoder", max_shard_size="100KB")
    _save(_unet(side, in_channels=3), root / "unet")
    _scheduler(1.5).save_pretrained(root / "scheduler")
    checker = _safety_checker()
    _save(checker, root / "safety_checker")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(
        root / "feature_extractor"
    )
    _watermarker().save_pretrained(root / "watermarker")
    _index(
        root,
        "IFPipeline",
        feature_extractor=["transformers", "CLIPImageProcessor"],
        safety_checker=["deepfloyd_if", "IFSafetyChecker"],
        scheduler=["diffusers", "DDPMScheduler"],
        text_encoder=["transformers", "T5EncoderModel"],
        tokenizer=["transformers", "T5Tokenizer"],
        unet=["diffusers", "UNet2DConditionModel"],
        watermarker=["deepfloyd_if", "IFWatermarker"],
        requires_safety_checker=True,
    )


def _stage_2(root: Path, side: int) -> None:
    _save(_unet(side, in_channels=6), root / "unet")
    _scheduler(1.0).save_pretrained(root / "scheduler")
    _noiser().save_pretrained(root / "image_noising_scheduler")
    _index(
        root,
        "IFSuperResolutionPipeline",
        scheduler=["diffusers", "DDPMScheduler"],
        image_noising_scheduler=["diffusers", "DDPMScheduler"],
        unet=["diffusers", "UNet2DConditionModel"],
    )


def _upscaler(root: Path) -> None:
    unet = UNet2DConditionModel(
        sample_size=128,
        in_channels=7,
        out_channels=4,
        block_out_channels=(8, 16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        num_class_embeds=1000,
        only_cross_attention=True,
        norm_num_groups=8,
        use_linear_projection=True,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        scaling_factor=0.08333,
        sample_size=256,
        mid_block_add_attention=False,
    )
    _save(unet, root / "unet")
    _save(vae, root / "vae")
    text = CLIPTextConfig(
        vocab_size=514,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=32,
        bos_token_id=0,
        eos_token_id=1,
    )
    _save(CLIPTextModel(text), root / "text_encoder")
    _clip_tokenizer(root / "tokenizer")
    DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(root / "scheduler")
    DDPMScheduler(beta_schedule="scaled_linear", beta_end=0.02).save_pretrained(
        root / "low_res_scheduler"
    )
    _index(
        root,
        "StableDiffusionUpscalePipeline",
        low_res_scheduler=["diffusers", "DDPMScheduler"],
        scheduler=["diffusers", "DDIMScheduler"],
        text_encoder=["transformers", "CLIPTextModel"],
        tokenizer=["transformers", "CLIPTokenizer"],
        unet=["diffusers", "UNet2DConditionModel"],
        vae=["diffusers", "AutoencoderKL"],
        max_noise_level=350,
    )


def _t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=128,
            d_model=TEXT_WIDTH,
            d_kv=16,
            d_ff=128,
            num_layers=3,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def _unet(side: int, in_channels: int) -> UNet2DConditionModel:
    second = in_channels == 6
    channels = (8, 16, 16, 32) if second else (16, 32)
    plain = len(channels) - 1
    scale = 1.4142271248762552 if second else 1.0
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=in_channels,
        out_channels=6,
        layers_per_block=1,
        block_out_channels=channels,
        down_block_types=("ResnetDownsampleBlock2D",) * plain + ("SimpleCrossAttnDownBlock2D",),
        up_block_types=("SimpleCrossAttnUpBlock2D",) + ("ResnetUpsampleBlock2D",) * plain,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        cross_attention_dim=32,
        encoder_hid_dim=TEXT_WIDTH,
        encoder_hid_dim_type="text_proj",
        attention_head_dim=8,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
        class_embed_type="timestep" if second else None,
        resnet_skip_time_act=second,
        resnet_out_scale_factor=scale,
        mid_block_scale_factor=scale,
        norm_num_groups=8,
    )


def _scheduler(largest: float) -> DDPMScheduler:
    return DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=largest,
    )


def _noiser() -> DDPMScheduler:
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2")


def _safety_checker() -> IFSafetyChecker:
    config = CLIPConfig(
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "projection_dim": 16,
        },
        projection_dim=16,
    )  # fmt: skip
    checker = IFSafetyChecker(config)
    for head in (checker.p_head, checker.w_head):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.constant_(head.bias, -10.0)
    return checker


def _watermarker() -> IFWatermarker:
    marker = IFWatermarker()
    marker.watermark_image[16:46, 16:46] = torch.tensor([255.0, 255.0, 255.0, 200.0])
    return marker


def _tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS), *WORDS, *"abcdefghijklmnopqrstuvwxyz"] * 20),
        model_writer=model,
        vocab_size=128,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    tokens = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    _json(folder / "special_tokens_map.json", tokens)
    _json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 77, **tokens},
    )


def _clip_tokenizer(folder: Path) -> None:
    """Byte-level, without merges: every byte is a token, with and without the end-of-word mark."""
    folder.mkdir(parents=True)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(b) for b in printable] + [chr(256 + k) for k in range(len(others))]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    _json(folder / "vocab.json", {word: number for number, word in enumerate(words)})
    (folder / "merges.txt").write_text("#version: 0.2\n")
    end = "<|endoftext|>"
    _json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "CLIPTokenizer", "bos_token": words[0], "eos_token": end,
            "unk_token": end, "pad_token": end, "model_max_length": 77,
        },
    )  # fmt: skip


def _save(model: torch.nn.Module, folder: Path, **kwargs: object) -> None:
    model.half().save_pretrained(folder, variant="fp16", **kwargs)


def _index(root: Path, class_name: str, **parts: object) -> None:
    _json(
        root / "model_index.json",
        {"_class_name": class_name, "_diffusers_version": "0.42.1"} | parts,
    )


def _json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")


if __name__ == "__main__":
    print(make_tiny_cascade(Path(sys.argv[1])))
