"""The end of a picture: what the plain pipelines' own endings do, once."""

from __future__ import annotations

from pathlib import Path

import numpy
import torch
from diffusers import IFPipeline
from diffusers.pipelines.deepfloyd_if import IFSafetyChecker
from PIL import Image
from runs import plan_of, run_here

from lowmem_if.planning.plan import Step
from lowmem_if.stages.pipelines import to_unit_range
from lowmem_if.stages.postprocess import Postprocessor, to_image
from lowmem_if.stages.stage import StageConfig
from lowmem_if.weights import loading


def finish_step(tiny: Path) -> Step:
    return plan_of(tiny).steps[-1]


def test_the_ending_is_that_of_the_plain_pipeline(tiny: Path) -> None:
    """Checker and mark on a tensor give the bytes of `IFPipeline(output_type="pil")`."""
    IFSafetyChecker.all_tied_weights_keys = {}
    pipeline = IFPipeline.from_pretrained(
        tiny / "stage_1", variant="fp16", torch_dtype=torch.float32
    )
    options = {"num_inference_steps": 2}
    seeded = [torch.Generator().manual_seed(3) for _ in range(2)]
    expected = pipeline("a red circle", generator=seeded[0], **options).images[0]
    tensor = pipeline("a red circle", generator=seeded[1], output_type="pt", **options).images[0]
    postprocessor = Postprocessor.load(StageConfig(tiny / "stage_1", finish_step(tiny)))
    ours = postprocessor.run(to_unit_range(tensor.float()), lambda _done, _total: None)
    assert ours.image.tobytes() == expected.tobytes()
    assert ours.flagged is False


def test_a_flagged_picture_is_black_and_told(tiny: Path, tmp_path: Path, monkeypatch) -> None:
    """The checker's verdict blackens the finished picture and leaves a notice, the run ends well."""
    real = loading.load_safety_checker

    def strict(folder: Path) -> object:
        checker = real(folder)
        torch.nn.init.constant_(checker.p_head.bias, 10.0)
        return checker

    monkeypatch.setattr("lowmem_if.stages.postprocess.load_safety_checker", strict)
    folder = run_here(plan_of(tiny, size=64, watermark=False), tmp_path / "run")
    pixels = numpy.array(Image.open(folder.images[0]))
    assert pixels.max() == 0
    assert folder.notices == ("the safety checker blackened image 0000",)


def test_every_picture_is_checked_once(tiny: Path, tmp_path: Path, monkeypatch) -> None:
    """The checker sees each finished picture exactly once, whatever the number of stages."""
    seen: list[tuple[int, ...]] = []
    forward = IFSafetyChecker.forward

    def counted(self, clip_input, images, **kwargs):
        seen.append(images.shape)
        return forward(self, clip_input, images, **kwargs)

    monkeypatch.setattr(IFSafetyChecker, "forward", counted)
    run_here(plan_of(tiny, ("a red circle", "a blue star")), tmp_path / "run")
    assert seen == [(1, 256, 256, 3)] * 2


def test_a_tensor_becomes_the_8_bit_picture_that_diffusers_makes() -> None:
    """Rounding to 8 bits is diffusers' own."""
    tensor = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = IFPipeline.numpy_to_pil(tensor.permute(1, 2, 0)[None].numpy())[0]
    assert to_image(tensor).tobytes() == expected.tobytes()
