"""Fine-tuned parts on this disk: where their folders are, what they lack, and what does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_cascade import make_tiny_cascade

from lowmem_if.cascade import catalog
from lowmem_if.cascade.catalog import STAGE_1, STAGE_2, TEXT_ENCODER, UPSCALER
from lowmem_if.cascade.locate import Location, locate, parts_on_hub
from lowmem_if.cascade.locating.weights_choice import WeightsChoice, part_choices
from lowmem_if.errors import CascadeError, CheckpointError, HubError, LowmemError

SMALL = (TEXT_ENCODER, STAGE_1)
UNET = "diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture
def tuned(tiny: Path, tmp_path: Path) -> Path:
    """A fine-tuned stage 1 as DreamBooth's script saves it: a whole repository."""
    return Path(shutil.copytree(tiny / "stage_1", tmp_path / "tuned"))


def placed(cascade: Path | str, components: tuple[str, ...] = SMALL, **parts: object) -> Location:
    choice = WeightsChoice(str(cascade), parts=part_choices({k: str(v) for k, v in parts.items()}))
    return locate(choice, components=components)


def refused(kind: type[LowmemError], call: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_whole_repository_replaces_one_component(tiny: Path, tuned: Path) -> None:
    """UNet and scheduler are the part's own; the text encoder is still the cascade's."""
    found = placed(tiny, stage_1=tuned)
    place = found.place(STAGE_1)
    assert place is not None
    assert place.folder("unet") == tuned / "unet"
    assert place.folder("scheduler") == tuned / "scheduler"
    assert found.folder(TEXT_ENCODER) == tiny / "stage_1"
    assert found.cascade.repositories == ()
    assert {file.parent.parent for file in found.files(STAGE_1)} == {tuned}


@pytest.mark.parametrize("given", ["", "unet"])
def test_a_unet_alone_borrows_the_scheduler(tiny: Path, tuned: Path, given: str) -> None:
    """A checkpoint of a training holds `unet/` and nothing else; its own folder may be given, too."""
    for folder in list(tuned.iterdir()):
        if folder.is_dir() and folder.name != "unet":
            shutil.rmtree(folder)
    place = placed(tiny, stage_1=tuned / given).place(STAGE_1)
    assert place is not None
    assert place.folder("unet") == tuned / "unet"
    assert place.folder("scheduler") == tiny / "stage_1" / "scheduler"


def test_a_networks_own_folder_may_have_any_name(tiny: Path, tuned: Path, tmp_path: Path) -> None:
    """What `unet.save_pretrained("mine")` writes."""
    mine = (tuned / "unet").rename(tmp_path / "mine")
    found = placed(tiny, stage_1=mine)
    place = found.place(STAGE_1)
    assert place is not None
    assert place.folder("unet") == mine
    assert found.cascade.parts[STAGE_1].modules == locate(str(tiny)).cascade.parts[STAGE_1].modules


def test_a_whole_cascade_may_lend_one_of_its_stages(tiny: Path, tmp_path: Path) -> None:
    """Given for stage 2, a cascade's folder means its `stage_2/`."""
    other = make_tiny_cascade(tmp_path / "other", sides=(32, 64), seed=5)
    found = placed(tiny, (TEXT_ENCODER, STAGE_1, STAGE_2), stage_2=other)
    assert found.folder(STAGE_2) == other / "stage_2"
    assert found.folder(STAGE_1) == tiny / "stage_1"


def test_a_repositorys_folder_of_a_cache_means_its_snapshot(tiny: Path, tmp_path: Path) -> None:
    """`models--me--my-if` holds the files under `snapshots/`."""
    snapshot = tmp_path / "models--me--my-if" / "snapshots" / ("a" * 40)
    shutil.copytree(tiny / "stage_1", snapshot)
    assert placed(tiny, stage_1=tmp_path / "models--me--my-if").folder(STAGE_1) == snapshot


def test_an_upscaler_may_consist_of_its_unet_alone(tiny: Path, tmp_path: Path) -> None:
    """VAE, text encoder, tokenizer and `model_index.json` are then the cascade's."""
    shutil.copytree(tiny / "upscaler" / "unet", tmp_path / "mine" / "unet")
    place = placed(tiny, (UPSCALER,), upscaler=tmp_path / "mine").place(UPSCALER)
    assert place is not None
    assert place.folder("vae") == tiny / "upscaler" / "vae"
    assert place.file("model_index.json") == tiny / "upscaler" / "model_index.json"


def test_where_a_part_is_does_not_change_the_order_of_its_files(
    tiny: Path, tuned: Path, tmp_path: Path
) -> None:
    """A fingerprint of the files must be the same after both folders are moved."""
    shutil.rmtree(tuned / "scheduler")
    one = placed(tiny, stage_1=tuned).files(STAGE_1)
    moved = Path(shutil.move(tuned, tmp_path / "zzz"))
    other = placed(tiny, stage_1=moved).files(STAGE_1)
    names = [(file.parent.name, file.name) for file in one]
    assert names == [(file.parent.name, file.name) for file in other]
    assert ("scheduler", "scheduler_config.json") in names


# --- what does not fit ----------------------------------------------------------------------------


def test_another_stage_is_recognised_by_its_configuration(tiny: Path) -> None:
    """The line says what it is, and the option that takes it."""
    text = refused(CascadeError, lambda: placed(tiny, stage_1=tiny / "stage_2" / "unet"))
    assert "this is stage 2, not stage 1: did you mean --part stage_2=" in text


def test_a_published_repository_of_another_stage_needs_no_look(tiny: Path) -> None:
    """Its name tells, without a network."""
    text = refused(CascadeError, lambda: placed(tiny, stage_1="DeepFloyd/IF-II-L-v1.0"))
    assert "did you mean --part stage_2=DeepFloyd/IF-II-L-v1.0?" in text


def test_a_unet_of_another_family_is_refused(tiny: Path, tuned: Path) -> None:
    """A Stable Diffusion UNet is no stage of IF."""
    edit(tuned / "unet" / "config.json", in_channels=4)
    assert "is not one of IF" in refused(CascadeError, lambda: placed(tiny, stage_1=tuned))


@pytest.mark.parametrize("cascade", ["tiny", "if-m"])
def test_a_unet_for_another_text_encoder_is_refused(
    cascade: str, tiny: Path, tuned: Path, nothing_downloaded: Path
) -> None:
    """Its text width is compared with the encoder on this disk, or with T5-XXL's."""
    if cascade == "tiny":
        edit(tuned / "unet" / "config.json", encoder_hid_dim=48)
    name, width, own = (tiny, 64, 48) if cascade == "tiny" else ("if-m", 4096, 64)
    text = refused(CascadeError, lambda: placed(name, stage_1=tuned))
    assert (
        f"reads {own} numbers per token, and the text encoder of this cascade gives {width}" in text
    )


def test_what_is_not_here_yet_is_compared_by_what_is_published(
    tiny: Path, nothing_downloaded: Path
) -> None:
    """IF's stages read T5-XXL, and its T5-XXL is for them alone."""
    text = refused(CascadeError, lambda: placed(tiny, stage_1="I-L"))
    assert "reads 4096 numbers per token, and the text encoder of this cascade gives 64" in text
    text = refused(CascadeError, lambda: placed(tiny, text_encoder="DeepFloyd/IF-I-L-v1.0"))
    assert "it gives 4096 numbers per token, and a UNet of this cascade reads 64" in text
    assert placed("if-m", text_encoder="DeepFloyd/IF-I-L-v1.0").folder(TEXT_ENCODER) is None


def test_a_folder_with_pickles_only_says_how_to_convert_them(tiny: Path, tuned: Path) -> None:
    """No pickle is read; the command in the line makes the file that is missing."""
    (tuned / "unet" / UNET).rename(tuned / "unet" / "diffusion_pytorch_model.fp16.bin")
    text = refused(CheckpointError, lambda: placed(tiny, stage_1=tuned))
    assert "pickles" in text
    assert text.endswith(f"{tuned}/unet/diffusion_pytorch_model.fp16.bin {tuned}/unet/{UNET}")


def test_a_folder_with_a_lora_says_which_option_takes_it(tiny: Path, tmp_path: Path) -> None:
    """DreamBooth with LoRA saves no UNet."""
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "pytorch_lora_weights.safetensors").touch()
    assert "--lora" in refused(CascadeError, lambda: placed(tiny, stage_1=tmp_path / "lora"))


def test_a_folder_of_something_else_says_what_is_needed(tiny: Path, tmp_path: Path) -> None:
    """The layout is named, and the page about it."""
    text = refused(CascadeError, lambda: placed(tiny, stage_1=tmp_path))
    assert "it has no folder unet/" in text


def test_a_folder_that_is_gone_is_named(tiny: Path, tuned: Path) -> None:
    """A run folder may outlive the weights that it was drawn with."""
    choice = WeightsChoice(str(tiny), parts=part_choices({STAGE_1: tuned}))
    shutil.rmtree(tuned)
    assert "does not exist any more" in refused(
        CascadeError, lambda: locate(choice, components=SMALL)
    )


def test_a_damaged_part_is_named(tiny: Path, tuned: Path) -> None:
    """Truncated weights are found before anything is loaded."""
    file = tuned / "unet" / UNET
    file.write_bytes(file.read_bytes()[:-1])
    assert str(file) in refused(CheckpointError, lambda: placed(tiny, stage_1=tuned))


def test_without_a_network_a_missing_folder_is_told_with_the_reason(tiny: Path) -> None:
    """It could be a repository, but the Hub cannot be asked: both are said."""
    text = refused(HubError, lambda: placed(tiny, stage_1="missing/folder"))
    assert "there is no folder 'missing/folder' here" in text
    assert "HF_HUB_OFFLINE is set" in text


# --- published repositories -----------------------------------------------------------------------


def test_a_published_repository_needs_no_network_for_a_plan(nothing_downloaded: Path) -> None:
    """The catalogue knows its sizes; its revision is its own."""
    found = placed("if-m", (STAGE_2,), stage_2="II-L@v1")
    part = found.cascade.parts[STAGE_2]
    assert part.modules == catalog.PUBLISHED["if-xl"].parts[STAGE_2].modules
    assert [(o.repository, o.revision) for o in part.origins] == [("DeepFloyd/IF-II-L-v1.0", "v1")]
    assert found.folder(STAGE_2) is None


def test_what_comes_from_the_hub_is_known_before_a_look(tuned: Path) -> None:
    """Folders are left out, and repositories of the user's own are in."""
    choice = WeightsChoice("if-m", parts=part_choices({"stage_1": tuned, "stage_2": "me/x@v1"}))
    parts = parts_on_hub(choice)
    assert parts.keys() == {TEXT_ENCODER, STAGE_2, UPSCALER, "postprocess"}
    assert (parts[STAGE_2].repository, parts[STAGE_2].revision) == ("me/x", "v1")
    assert parts_on_hub(WeightsChoice(str(tuned))) == {}
