"""A cascade whose files are broken, of another network or unreadable is told so before it draws."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import plan_of, run_here

from lowmem_if.cascade.catalog import POSTPROCESS, STAGE_1, STAGE_2, TEXT_ENCODER, UPSCALER
from lowmem_if.cascade.locate import locate
from lowmem_if.engine.worker.steps.step_run import weights_fingerprint
from lowmem_if.errors import CheckpointError, RunFolderError
from lowmem_if.stages.text_encoder import TextCleaner
from lowmem_if.weights.loading import load_text_encoder
from lowmem_if.weights.small_parts import load_feature_extractor, load_scheduler, load_tokenizer


@pytest.fixture
def cascade(tiny: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny, tmp_path / "cascade"))


def change(file: Path, **values: Any) -> None:
    """Give a JSON file other values; `...` takes a key away."""
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def refused(act: Callable[[], object]) -> str:
    """The one line in which something is refused."""
    with pytest.raises(CheckpointError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what a local cascade lacks -----------------------------------------------------------------

SMALL = (
    "stage_1/tokenizer", "stage_1/scheduler", "stage_1/feature_extractor",
    "stage_2/scheduler", "stage_2/image_noising_scheduler",
    "upscaler/tokenizer", "upscaler/scheduler", "upscaler/low_res_scheduler",
)  # fmt: skip


@pytest.mark.parametrize("folder", SMALL)
def test_a_small_folder_that_is_missing_is_named_before_anything_is_planned(
    cascade: Path, folder: str
) -> None:
    """Without it there is no plan: no 8-bit storage is proposed, and nothing to download."""
    shutil.rmtree(cascade / folder)
    text = refused(lambda: plan_of(cascade))
    assert str(cascade / folder) in text
    assert "copy" in text


@pytest.mark.parametrize(
    "file",
    ["stage_1/tokenizer/spiece.model", "upscaler/tokenizer/merges.txt", "upscaler/model_index.json",
     "upscaler/low_res_scheduler/scheduler_config.json"],
)  # fmt: skip
def test_a_small_file_that_is_missing_is_told_before_anything_is_planned(
    cascade: Path, file: str
) -> None:
    """What only the upscaler reads is missed at once, not after two stages have drawn."""
    (cascade / file).unlink()
    assert str(cascade / Path(file).parent) in refused(lambda: plan_of(cascade))


def test_the_upscalers_index_is_no_matter_to_a_small_picture(cascade: Path) -> None:
    """Nothing of the upscaler is looked at where it does not run."""
    (cascade / "upscaler/model_index.json").unlink()
    assert plan_of(cascade, size=256)


def test_only_the_text_encoder_can_be_had_in_8_bits_alone(cascade: Path) -> None:
    """An 8-bit file in a UNet's folder is no reason to plan that stage in 8 bits."""
    (file,) = (cascade / "stage_1/unet").glob("*.safetensors")
    file.rename(file.with_name("diffusion_pytorch_model.8bit.safetensors"))
    assert "no safetensors weights" in refused(lambda: plan_of(cascade))


# --- configurations that are not the right ones -------------------------------------------------

WRONG: dict[str, Any] = {
    "width that is text": ("stage_1/text_encoder/config.json", {"d_model": "x"}, "d_model is 'x'"),
    "width of another encoder": (
        "stage_1/text_encoder/config.json", {"d_model": 32}, "text_width is 64, but d_model",
    ),
    "stage 1 without its size": (
        "stage_1/unet/config.json", {"sample_size": None}, "sample_size is None",
    ),
    "stage 2 without its size": (
        "stage_2/unet/config.json", {"sample_size": ...}, "sample_size is missing",
    ),
    "stage 2 without noise level": (
        "stage_2/unet/config.json", {"class_embed_type": None}, "class_embed_type is None",
    ),
    "stage 2 of other texts": ("stage_2/unet/config.json", {"encoder_hid_dim": 8}, "text_width is 8"),
    "tokenizer of no class": (
        "stage_1/tokenizer/tokenizer_config.json", {"tokenizer_class": 5}, "tokenizer_class is 5",
    ),
    "scheduler of no class": (
        "stage_1/scheduler/scheduler_config.json", {"_class_name": None}, "_class_name is None",
    ),
    "another noising scheduler": (
        "stage_2/image_noising_scheduler/scheduler_config.json",
        {"_class_name": "UNet2DModel"}, "_class_name is 'UNet2DModel'",
    ),
    "upscaler's noise": (
        "upscaler/model_index.json", {"max_noise_level": "x"}, "max_noise_level is 'x'",
    ),
    "upscaler's prompts": (
        "upscaler/tokenizer/tokenizer_config.json",
        {"model_max_length": ...}, "model_max_length is missing",
    ),
    "upscaler's prompts too long": (
        "upscaler/tokenizer/tokenizer_config.json",
        {"model_max_length": 512}, "model_max_length is 512",
    ),
    "upscaler of another text encoder": (
        "upscaler/text_encoder/config.json", {"hidden_size": 8}, "text_width is 32, but hidden_size",
    ),
    "upscaler of another VAE": (
        "upscaler/vae/config.json", {"latent_channels": 16}, "in_channels is 7",
    ),
    "checker of other pictures": (
        "stage_1/feature_extractor/preprocessor_config.json",
        {"crop_size": {"height": 224, "width": 224}}, "crop_size is 224, but image_size",
    ),
    "pictures of no size": (
        "stage_1/feature_extractor/preprocessor_config.json",
        {"crop_size": "x"}, "crop_size is 'x'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_configuration_is_told_before_anything_is_planned(cascade: Path, what: str) -> None:
    """A value that would fail hours later, or draw nonsense, is named with its file."""
    name, values, words = WRONG[what]
    change(cascade / name, **values)
    text = refused(lambda: plan_of(cascade))
    assert words in text
    assert str((cascade / name).parent) in text


def test_swapped_networks_are_told(cascade: Path) -> None:
    """Stage 2's UNet in stage 1's place has other inputs, which is seen in its configuration."""
    first, second, aside = cascade / "stage_1/unet", cascade / "stage_2/unet", cascade / "aside"
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    text = refused(lambda: plan_of(cascade))
    assert f"{first / 'config.json'}: in_channels is 6: input should be 3" in text


def test_an_empty_preprocessor_configuration_is_told(cascade: Path) -> None:
    """`{}` means CLIP's own 224 pixels, which are not this checker's."""
    (cascade / "stage_1/feature_extractor/preprocessor_config.json").write_text("{}")
    assert "crop_size is 224" in refused(lambda: plan_of(cascade))


@pytest.mark.parametrize("crop", [32, {"height": 32, "width": 32}])
def test_both_spellings_of_the_crop_are_understood(cascade: Path, crop: object) -> None:
    """Older files give one number."""
    change(cascade / "stage_1/feature_extractor/preprocessor_config.json", crop_size=crop)
    assert locate(str(cascade), components=[POSTPROCESS])


def test_what_runs_alone_is_compared_with_nothing(cascade: Path) -> None:
    """Stage 2 of other texts is no matter to a picture that needs no stage 2."""
    change(cascade / "stage_2/unet/config.json", encoder_hid_dim=8)
    locate(str(cascade), components=[TEXT_ENCODER, STAGE_1, POSTPROCESS])
    locate(str(cascade), components=[STAGE_2])


@pytest.mark.parametrize(
    "file",
    ["upscaler/tokenizer/vocab.json", "stage_1/tokenizer/special_tokens_map.json",
     "stage_1/text_encoder/model.safetensors.index.fp16.json"],
)  # fmt: skip
@pytest.mark.parametrize(
    "content", ["", "{", "[" * 100_000, "[]"], ids=["empty", "cut", "deep", "list"]
)
def test_every_json_file_that_is_read_must_be_one(cascade: Path, file: str, content: str) -> None:
    """Vocabularies and indexes too are looked at before anything is planned."""
    (cascade / file).write_text(content)
    assert str(cascade / file) in refused(lambda: plan_of(cascade))


# --- what only the libraries can tell -----------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 1, 0.5, -1], ids=["empty", "a byte", "half", "all but a byte"])
def test_a_broken_vocabulary_is_told_as_that(cascade: Path, keep: float) -> None:
    """Not as a missing tiktoken, and not as a bug."""
    file = cascade / "stage_1/tokenizer/spiece.model"
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else int(keep)])
    text = refused(lambda: TextCleaner(cascade / "stage_1"))
    assert text.startswith(f"{file}: cannot be loaded (")
    assert "tiktoken" not in text


def test_a_configuration_that_the_library_refuses_is_told(cascade: Path) -> None:
    """Values nobody here knows of end in one line, whatever exception they end in there."""
    change(cascade / "stage_1/text_encoder/config.json", num_heads="many", d_kv=None)
    options: dict[str, Any] = {"storage": "float32", "compute": "float32", "device": "cpu"}
    assert "text_encoder: cannot be loaded" in refused(
        lambda: load_text_encoder(cascade / "stage_1", **options)
    )


def test_whatever_a_loader_raises_is_told(cascade: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain Exception of a library below the library is no bug of ours."""

    def fail(*_args: object, **_options: object) -> None:
        raise Exception("Error while loading Unigram")

    monkeypatch.setattr("transformers.T5Tokenizer.from_pretrained", fail)
    assert "Unigram" in refused(lambda: load_tokenizer(cascade / "stage_1/tokenizer"))
    monkeypatch.setattr("transformers.CLIPImageProcessorPil.from_pretrained", fail)
    assert "Unigram" in refused(
        lambda: load_feature_extractor(cascade / "stage_1/feature_extractor")
    )


@pytest.mark.parametrize("values", [{"_class_name": "Scheduler"}, {"beta_schedule": "steep"}])
def test_a_scheduler_that_diffusers_cannot_make_is_told(
    cascade: Path, values: dict[str, str]
) -> None:
    """An unknown class or schedule ends in one line that names the folder."""
    folder = cascade / "stage_1/scheduler"
    change(folder / "scheduler_config.json", **values)
    assert str(folder) in refused(lambda: load_scheduler(folder))


def test_known_words_of_another_shape_are_told(cascade: Path, tmp_path: Path) -> None:
    """The list of a small language's words is checked like every other file."""
    file = cascade / "stage_1/tokenizer/known_words.json"
    file.write_text('{"colours": 5}')
    text = refused(lambda: run_here(plan_of(cascade, size=64), tmp_path / "run"))
    assert str(file) in text


# --- what may not be read -----------------------------------------------------------------------

READ_ALL = """
import json, os, sys
from pathlib import Path
from lowmem_if.errors import LowmemError
from lowmem_if.cascade.locate import locate
from lowmem_if.weights.files.fingerprint import fingerprint
told = {}
for name in sys.argv[2:]:
    place = Path(sys.argv[1], name)
    mode = place.stat().st_mode
    place.chmod(0)
    try:
        location = locate(sys.argv[1])
        for component in location.cascade.parts:
            fingerprint(location.folder(component), location.files(component))
    except LowmemError as error:
        told[name] = [type(error).__name__, str(error)]
    place.chmod(mode)
print(json.dumps(told))
"""


def test_what_may_not_be_read_is_named(cascade: Path) -> None:
    """A folder or file without the right to read it ends in one line with its path."""
    names = (
        ".", "stage_1", "stage_1/unet", "stage_1/tokenizer", "stage_1/tokenizer/spiece.model",
        "stage_1/scheduler/scheduler_config.json", "upscaler/vae", "upscaler/model_index.json",
        "stage_2/unet/diffusion_pytorch_model.fp16.safetensors",
    )  # fmt: skip
    out = subprocess.check_output(
        [sys.executable, "-c", READ_ALL, str(cascade), *names],
        preexec_fn=bow_to_permissions if os.geteuid() == 0 else None,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        text=True,
    )
    told = json.loads(out)
    assert set(told) == set(names)
    for name, (kind, text) in told.items():
        assert kind in ("CheckpointError", "CascadeError")
        assert re.fullmatch(re.escape(str(cascade / name)) + ": it may not be read; .*", text)


def bow_to_permissions() -> None:
    """Take from root, before it executes Python, the right to read where nobody may."""
    drop_from_bounding_set, dac_override, dac_read_search = 24, 1, 2
    for right in (dac_override, dac_read_search):
        ctypes.CDLL(None).prctl(drop_from_bounding_set, right, 0, 0, 0)


# --- which files these are ----------------------------------------------------------------------


def identities(cascade: Path) -> dict[str, str]:
    location = locate(str(cascade))
    return {step.component: weights_fingerprint(location, step) for step in plan_of(cascade).steps}


@pytest.mark.parametrize(
    ("file", "values", "component"),
    [
        ("stage_1/text_encoder/config.json", {"layer_norm_epsilon": 1e-3}, TEXT_ENCODER),
        ("stage_1/tokenizer/tokenizer_config.json", {"extra_ids": 1}, TEXT_ENCODER),
        ("stage_1/tokenizer/special_tokens_map.json", {"unk_token": "<pad>"}, TEXT_ENCODER),
        ("stage_1/scheduler/scheduler_config.json", {"beta_schedule": "linear"}, STAGE_1),
        ("stage_2/unet/config.json", {"norm_eps": 1e-3}, STAGE_2),
        ("stage_2/image_noising_scheduler/scheduler_config.json", {"beta_end": 0.1}, STAGE_2),
        ("upscaler/model_index.json", {"max_noise_level": 200}, UPSCALER),
        ("upscaler/tokenizer/vocab.json", {"new": 514}, UPSCALER),
        ("upscaler/low_res_scheduler/scheduler_config.json", {"beta_end": 0.1}, UPSCALER),
        ("stage_1/feature_extractor/preprocessor_config.json", {"resample": 0}, POSTPROCESS),
    ],
)
def test_another_configuration_is_another_component(
    tiny: Path, cascade: Path, file: str, values: dict[str, Any], component: str
) -> None:
    """Weights are the same only with what they are read by; the other components stay themselves."""
    change(cascade / file, **values)
    before, after = identities(tiny), identities(cascade)
    assert {name for name in before if before[name] != after[name]} == {component}


def test_what_nothing_reads_changes_no_component(tiny: Path, cascade: Path) -> None:
    """Other files beside those that are read, and the pipelines' own index, are no matter."""
    (cascade / "stage_1/tokenizer/tokenizer.bin").write_bytes(b"x")
    (cascade / "stage_1/text_encoder/README.md").write_text("x")
    change(cascade / "stage_1/model_index.json", _diffusers_version="1")
    assert identities(cascade) == identities(tiny)


def test_embeddings_of_another_configuration_are_not_served(cascade: Path, tmp_path: Path) -> None:
    """The embeddings kept across runs are those of the encoder as it is configured now."""
    first = run_here(plan_of(cascade, size=64), tmp_path / "a")
    change(cascade / "stage_1/text_encoder/config.json", layer_norm_epsilon=0.5)
    second = run_here(plan_of(cascade, size=64), tmp_path / "b")
    file = first.embedding_file("a red circle").relative_to(first.path)
    assert (first.path / file).read_bytes() != (second.path / file).read_bytes()


def test_a_run_is_not_continued_under_another_schedule(cascade: Path, tmp_path: Path) -> None:
    """A scheduler that was changed in between would draw other pictures."""
    run_here(plan_of(cascade, size=64), tmp_path / "run")
    (tmp_path / "run/0000.png").unlink()
    (tmp_path / "run/stage_1/0000.safetensors").unlink()
    change(cascade / "stage_1/scheduler/scheduler_config.json", beta_schedule="linear")
    with pytest.raises(RunFolderError, match="stage_1 have changed"):
        run_here(plan_of(cascade, size=64), tmp_path / "run")
