"""Where a cascade lies: the bundled one, a folder, the Hugging Face cache; broken ones by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lowmem_if.cascade import catalog
from lowmem_if.cascade import locate as locations
from lowmem_if.cascade.catalog import (
    COMPONENTS,
    POSTPROCESS,
    STAGE_1,
    STAGE_2,
    TEXT_ENCODER,
    UPSCALER,
)
from lowmem_if.cascade.configs import read_config
from lowmem_if.cascade.locate import locate
from lowmem_if.cascade.locating.hub_folders import snapshot_folder
from lowmem_if.cascade.modes import VARY, defaults_for
from lowmem_if.cascade.module_files import weight_variant
from lowmem_if.cascade.safetensors_header import read_headers
from lowmem_if.errors import CascadeError, CheckpointError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FIRST, SECOND = "DeepFloyd/IF-I-M-v1.0", "DeepFloyd/IF-II-M-v1.0"
X4 = "stabilityai/stable-diffusion-x4-upscaler"


@pytest.fixture
def cascade(tiny: Path, tmp_path: Path) -> Path:
    """A tiny cascade of this test's own, to break."""
    return Path(shutil.copytree(tiny, tmp_path / "cascade"))


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty Hugging Face cache."""
    folder = tmp_path / "hub cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def download(cache: Path, tiny: Path) -> Callable[..., Path]:
    """Put a root of the tiny cascade into the cache as a snapshot of `repository`; its folder."""

    def put(repository: str, root: str, *, ref: str = "main", commit: str = COMMIT) -> Path:
        home = cache / f"models--{repository.replace('/', '--')}"
        (home / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (home / "refs" / ref).write_text(commit)
        blobs = Path(shutil.copytree(tiny / root, home / "blobs"))
        snapshot = home / "snapshots" / commit
        for blob in filter(Path.is_file, blobs.rglob("*")):  # the cache links to its blobs
            link = snapshot / blob.relative_to(blobs)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
        return snapshot

    return put


def weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def refused(name: object, kind: type[Exception], **kwargs: object) -> str:
    """The one line in which a cascade is refused."""
    with pytest.raises(kind) as caught:
        locate(str(name), **kwargs)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- folders ------------------------------------------------------------------------------------


def test_a_folder_is_measured_by_its_own_files(cascade: Path) -> None:
    """Numbers and bytes of every module come from the headers and files that are there."""
    found = locate(str(cascade))
    assert found.cascade.name == str(cascade)
    assert set(found.cascade.parts) == set(COMPONENTS)
    for component, part in found.cascade.parts.items():
        assert part.repository is None
        for module in part.modules:
            folder = cascade / part.root / module.folder
            tensors = read_headers(weights(folder))
            assert module.weights.parameters == sum(t.numbers for t in tensors.values()), component
            assert module.file_bytes == sum(file.stat().st_size for file in weights(folder))


def test_a_unets_width_comes_from_its_configuration(cascade: Path) -> None:
    """Activations are predicted from the width of the first block."""
    parts = locate(str(cascade)).cascade.parts
    (unet,) = parts[STAGE_1].modules
    config = json.loads((cascade / "stage_1/unet/config.json").read_text())
    assert unet.channels == config["block_out_channels"][0]
    assert {module.folder: module.channels > 0 for module in parts[UPSCALER].modules} == {
        "unet": True, "text_encoder": False, "vae": True,
    }  # fmt: skip


def test_every_component_of_a_folder_is_found(cascade: Path) -> None:
    """Each component is told the root that it loads from."""
    found = locate(str(cascade))
    roots = {component: found.folder(component) for component in COMPONENTS}
    assert roots == {
        TEXT_ENCODER: cascade / "stage_1",
        STAGE_1: cascade / "stage_1",
        STAGE_2: cascade / "stage_2",
        UPSCALER: cascade / "upscaler",
        POSTPROCESS: cascade / "stage_1",
    }
    assert found.folder("no such component") is None


def test_a_folder_is_sampled_like_if(cascade: Path) -> None:
    """A folder gets the defaults of IF's own pipelines."""
    assert locate(str(cascade)).cascade.defaults == catalog.IF_DEFAULTS


def test_a_relative_folder_is_the_same_cascade(
    cascade: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the folder is written, the cascade is named by its whole path."""
    monkeypatch.chdir(cascade.parent)
    assert locate("cascade") == locate("./cascade/") == locate(str(cascade))


def test_a_folder_in_the_home_may_be_written_with_a_tilde(
    cascade: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`~` is the home folder, also when no shell put it in."""
    monkeypatch.setenv("HOME", str(cascade.parent))
    assert locate("~/cascade") == locate(str(cascade))


def test_a_folder_of_any_name_works(cascade: Path) -> None:
    """Spaces, quotes and other scripts in a path are no matter."""
    odd = cascade.rename(cascade.parent / "my 'صور' 🎨 絵\nx")
    assert locate(str(odd)).folder(STAGE_1) == odd / "stage_1"


@pytest.mark.parametrize(
    ("components", "needless"),
    [
        ((TEXT_ENCODER, STAGE_1, POSTPROCESS), ("stage_2", "upscaler")),
        ((TEXT_ENCODER, STAGE_1, STAGE_2, POSTPROCESS), ("upscaler",)),
        ((TEXT_ENCODER, STAGE_1), ("stage_2", "upscaler", "stage_1/safety_checker")),
    ],
)
def test_what_a_request_does_not_use_may_be_missing(
    cascade: Path, components: tuple[str, ...], needless: tuple[str, ...]
) -> None:
    """A 64 pixel request needs no stage 2 and no upscaler on the disk."""
    for folder in needless:
        shutil.rmtree(cascade / folder)
    assert set(locate(str(cascade), components=components).cascade.parts) == set(components)


def test_a_root_that_is_needed_and_missing_is_named(cascade: Path) -> None:
    """A missing stage is named together with the component that needs it."""
    shutil.rmtree(cascade / "stage_2")
    text = refused(cascade, CascadeError)
    assert "stage_2/" in text
    assert str(cascade) in text


def test_a_folder_that_is_no_cascade_says_what_one_looks_like(tmp_path: Path) -> None:
    """A folder without `stage_1/` is refused with the folders that make a cascade."""
    text = refused(tmp_path, CascadeError)
    assert str(tmp_path) in text
    assert all(root in text for root in ("stage_1/", "stage_2/", "upscaler/"))


@pytest.mark.parametrize(
    "name",
    ["if-xxl", "IF-XXL", "/no/such/folder", "no\0name", "~no-such-user/x",
     pytest.param("x" * 5000, id="too long")],
)  # fmt: skip
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    """What is neither a cascade nor a folder is refused with every known name."""
    text = refused(name, CascadeError)
    assert all(known in text for known in ("if-xl", "if-l", "if-m", "demo"))


def test_a_file_is_no_cascade(cascade: Path) -> None:
    """A path of a file is no folder, hence no cascade."""
    refused(cascade / "stage_1" / "model_index.json", CascadeError)


# --- broken files -------------------------------------------------------------------------------


MODULES = (
    "stage_1/text_encoder", "stage_1/unet", "stage_1/safety_checker", "stage_1/watermarker",
    "stage_2/unet", "upscaler/unet", "upscaler/text_encoder", "upscaler/vae",
)  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_missing_weights_are_named(cascade: Path, module: str) -> None:
    """A module folder without safetensors files is named."""
    for file in weights(cascade / module):
        file.unlink()
    assert str(cascade / module) in refused(cascade, CheckpointError)


@pytest.mark.parametrize("module", MODULES)
def test_a_missing_module_folder_is_named(cascade: Path, module: str) -> None:
    """A module folder that is not there at all is named."""
    shutil.rmtree(cascade / module)
    assert str(cascade / module) in refused(cascade, CheckpointError)


@pytest.mark.parametrize(
    ("module", "harm"),
    [(module, "truncated") for module in MODULES]
    + [("stage_1/text_encoder", harm) for harm in ("empty", "corrupt", "longer")],
)
def test_a_damaged_weight_file_is_named(cascade: Path, module: str, harm: str) -> None:
    """Truncated, empty, overwritten and overlong files are found before anything is loaded."""
    file = weights(cascade / module)[-1]
    content = file.read_bytes()
    damaged = {
        "truncated": content[:-1],
        "empty": b"",
        "corrupt": b"\xff" * len(content),
        "longer": content + b"x",
    }
    file.write_bytes(damaged[harm])
    assert str(file) in refused(cascade, CheckpointError)


def test_a_missing_shard_is_named(cascade: Path) -> None:
    """The shard that the numbering promises is named."""
    shards = weights(cascade / "stage_1/text_encoder")
    shards[1].unlink()
    assert shards[1].name in refused(cascade, CheckpointError)


def test_shards_without_their_index_are_told(cascade: Path) -> None:
    """The index that the libraries need to load shards is missed by name."""
    for index in (cascade / "stage_1/text_encoder").glob("*.index.*json"):
        index.unlink()
    assert "index" in refused(cascade, CheckpointError)


@pytest.mark.parametrize(
    "content", [b"{", b"", b"[1]", b"null", b"\xff\xfe\x00", b'{"block_out_channels": "wide"}',
                b'{"block_out_channels": 5}']
)  # fmt: skip
def test_a_broken_configuration_is_named(cascade: Path, content: bytes) -> None:
    """Configurations that are no JSON, no object or hold nonsense are told by their path."""
    file = cascade / "stage_1/unet/config.json"
    file.write_bytes(content)
    text = refused(cascade, CheckpointError)
    assert str(file) in text


def test_a_missing_configuration_is_named(cascade: Path) -> None:
    """A configuration that is not there is told by its path."""
    file = cascade / "stage_2/unet/config.json"
    file.unlink()
    assert str(file) in refused(cascade, CheckpointError)


def test_what_a_request_does_not_use_may_be_broken(cascade: Path) -> None:
    """Files of a stage that does not run are not looked at."""
    weights(cascade / "upscaler/vae")[0].write_bytes(b"")
    locate(str(cascade), components=(TEXT_ENCODER, STAGE_1, STAGE_2, POSTPROCESS))


def test_read_config_reads_utf8(tmp_path: Path) -> None:
    """A configuration is UTF-8 whatever the system's own encoding is."""
    (tmp_path / "config.json").write_bytes('{"name": "絵"}'.encode())
    assert read_config(tmp_path / "config.json") == {"name": "絵"}


# --- the 8-bit text encoder ---------------------------------------------------------------------


def eight_bit(folder: Path) -> Path:
    """Add a file in the layout of the published 8-bit encoder."""
    numpy = pytest.importorskip("numpy")
    from safetensors.numpy import save_file

    layer = "encoder.block.0.layer.0.SelfAttention.q"
    file = folder / "model.8bit.safetensors"
    save_file(
        {
            "shared.weight": numpy.zeros((128, 64), numpy.float16),
            f"{layer}.weight": numpy.zeros((64, 64), numpy.int8),
            f"{layer}.SCB": numpy.zeros(64, numpy.float32),
            f"{layer}.weight_format": numpy.zeros((), numpy.uint8),
        },
        file,
    )
    return file


def test_with_only_an_8bit_file_that_is_what_is_measured(cascade: Path) -> None:
    """A folder that holds the 8-bit encoder alone serves int8 and no other storage."""
    folder = cascade / "stage_1/text_encoder"
    for file in [*weights(folder), *folder.glob("*.index.*json")]:
        file.unlink()
    file = eight_bit(folder)
    found = locate(str(cascade))
    (module,) = found.cascade.parts[TEXT_ENCODER].modules
    assert module.file_bytes == file.stat().st_size
    assert (module.weights.linear, module.weights.linear_rows) == (64 * 64, 64)
    assert module.weights.other == 128 * 64
    assert found.folder(TEXT_ENCODER, storage="int8") == cascade / "stage_1"
    assert found.folder(TEXT_ENCODER, storage="float16") is None


def test_the_16bit_shards_serve_every_storage(cascade: Path) -> None:
    """int8 is quantised from the 16-bit shards where there is no 8-bit file."""
    found = locate(str(cascade))
    assert found.folder(TEXT_ENCODER, storage="int8") == cascade / "stage_1"
    assert found.folder(TEXT_ENCODER, storage="float16") == cascade / "stage_1"


def test_weight_variant_names_what_is_wrong(tmp_path: Path) -> None:
    """No weights, a missing shard and a missing index each have words of their own."""
    with pytest.raises(CheckpointError, match="no safetensors weights"):
        weight_variant(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors missing"):
        weight_variant(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").touch()
    with pytest.raises(CheckpointError, match="no index file"):
        weight_variant(tmp_path)
    (tmp_path / "model.safetensors.index.json").touch()
    assert len(weight_variant(tmp_path).files) == 2


# --- the bundled cascade ------------------------------------------------------------------------


def test_the_demo_is_the_bundled_folder_with_its_own_defaults(
    cascade: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`demo` is read from the package, and sampled as suits it."""
    monkeypatch.setattr(locations, "DEMO_FOLDER", cascade)
    found = locate("demo")
    assert found.cascade.name == "demo"
    assert found.cascade.defaults == catalog.DEMO_DEFAULTS
    assert found.folder(UPSCALER) == cascade / "upscaler"


def test_a_folder_that_was_trained_as_the_demo_is_sampled_like_it(cascade: Path) -> None:
    """Its list of words tells; sampled as IF is it would be judged by another's settings."""
    assert locate(str(cascade)).cascade.defaults == catalog.IF_DEFAULTS
    (cascade / "stage_1" / "tokenizer" / catalog.KNOWN_WORDS).write_text("{}")
    found = locate(str(cascade)).cascade
    assert found.defaults == catalog.DEMO_DEFAULTS
    defaults = defaults_for(found, VARY, STAGE_2)
    assert defaults is not None
    assert defaults.guidance_scale == 1.0


def test_the_demo_is_looked_for_inside_the_package() -> None:
    """The bundled cascade travels with the package's own folder."""
    package = Path(locations.__file__).parents[1]
    assert package / "demo" == locations.DEMO_FOLDER


# --- the Hugging Face cache ---------------------------------------------------------------------


def test_nothing_is_here_before_anything_was_downloaded(cache: Path) -> None:
    """With an empty cache the catalogue's figures stand, and no folder is named."""
    found = locate("if-m")
    assert found.cascade == catalog.PUBLISHED["if-m"]
    assert all(found.folder(component) is None for component in COMPONENTS)
    assert snapshot_folder(FIRST) is None


def test_a_downloaded_repository_is_found_by_its_branch(
    cache: Path, download: Callable[..., Path]
) -> None:
    """`refs/main` names the commit whose snapshot is used."""
    snapshot = download(FIRST, "stage_1")
    found = locate("if-m")
    assert snapshot_folder(FIRST) == snapshot
    assert (
        found.folder(TEXT_ENCODER) == found.folder(STAGE_1) == found.folder(POSTPROCESS) == snapshot
    )
    assert found.folder(STAGE_2) is None
    assert found.folder(UPSCALER) is None


def test_what_is_downloaded_is_measured_and_the_rest_is_the_catalogues(
    cache: Path, download: Callable[..., Path]
) -> None:
    """Sizes come from the files that are here, and from the catalogue where there are none."""
    download(FIRST, "stage_1")
    download(X4, "upscaler")
    parts, published = locate("if-m").cascade.parts, catalog.PUBLISHED["if-m"].parts
    for component in (TEXT_ENCODER, STAGE_1, UPSCALER, POSTPROCESS):
        assert parts[component].modules[0].file_bytes < 10**6
        assert parts[component].repository == published[component].repository
    assert parts[STAGE_2] == published[STAGE_2]


def test_a_whole_download_is_the_whole_cascade(cache: Path, download: Callable[..., Path]) -> None:
    """With the three repositories here, every component has its folder."""
    folders = [download(FIRST, "stage_1"), download(SECOND, "stage_2"), download(X4, "upscaler")]
    found = locate("if-m")
    assert [found.folder(c) for c in (STAGE_1, STAGE_2, UPSCALER)] == folders


def test_another_revision_is_another_snapshot(cache: Path, download: Callable[..., Path]) -> None:
    """A tag, or a commit itself, is found as well; a revision that was not downloaded is not."""
    snapshot = download(FIRST, "stage_1", ref="v1")
    assert snapshot_folder(FIRST, "v1") == snapshot
    assert snapshot_folder(FIRST, COMMIT) == snapshot
    assert snapshot_folder(FIRST) is None
    assert locate("if-m", revision="v1").folder(STAGE_1) == snapshot
    assert locate("if-m").folder(STAGE_1) is None


def test_a_reference_to_a_snapshot_that_was_deleted_is_not_there(
    cache: Path, download: Callable[..., Path]
) -> None:
    """A branch whose snapshot is gone counts as not downloaded."""
    shutil.rmtree(download(FIRST, "stage_1"))
    assert snapshot_folder(FIRST) is None
    assert locate("if-m").folder(STAGE_1) is None


PARTLY = {
    "no weights of the unet": ("unet/*.safetensors", STAGE_1),
    "no configuration of the unet": ("unet/config.json", STAGE_1),
    "no unet at all": ("unet/*", STAGE_1),
    "a shard less": ("text_encoder/*00002-of*.safetensors", TEXT_ENCODER),
    "no index of the shards": ("text_encoder/*.index.*json", TEXT_ENCODER),
    "no configuration of the encoder": ("text_encoder/config.json", TEXT_ENCODER),
    "no watermarker": ("watermarker/*", POSTPROCESS),
    "no tokenizer": ("tokenizer", TEXT_ENCODER),
    "no scheduler": ("scheduler", STAGE_1),
    "no feature extractor": ("feature_extractor", POSTPROCESS),
}


@pytest.mark.parametrize("what", PARTLY)
def test_a_partly_downloaded_component_is_not_there(
    cache: Path, download: Callable[..., Path], what: str
) -> None:
    """While files of a component are still on their way it is not here: no error, still to fetch."""
    pattern, component = PARTLY[what]
    snapshot = download(FIRST, "stage_1")
    for file in list(snapshot.glob(pattern)):
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    found = locate("if-m")
    assert found.folder(component) is None
    others = {TEXT_ENCODER, STAGE_1, POSTPROCESS} - {component}
    assert all(found.folder(other) == snapshot for other in others)


def test_an_8bit_file_beside_an_unfinished_16bit_download_still_serves(
    cache: Path, download: Callable[..., Path]
) -> None:
    """With the 8-bit file complete and a 16-bit shard missing, int8 is here and float16 is not."""
    snapshot = download(FIRST, "stage_1")
    next(snapshot.glob("text_encoder/*00002-of*.safetensors")).unlink()
    eight_bit(snapshot / "text_encoder")
    found = locate("if-m")
    assert found.folder(TEXT_ENCODER, storage="int8") == snapshot
    assert found.folder(TEXT_ENCODER, storage="float16") is None


def test_a_damaged_file_of_the_cache_is_named(cache: Path, download: Callable[..., Path]) -> None:
    """A complete set of names with a damaged file behind one is an error, not a download."""
    snapshot = download(FIRST, "stage_1")
    file = next(snapshot.glob("unet/*.safetensors"))
    file.resolve().write_bytes(b"")
    assert str(file) in refused("if-m", CheckpointError)


def test_a_link_to_nothing_is_not_there(cache: Path, download: Callable[..., Path]) -> None:
    """A file whose blob is gone is still to be fetched: that is no error."""
    snapshot = download(FIRST, "stage_1")
    next(snapshot.glob("unet/*.safetensors")).resolve().unlink()
    found = locate("if-m")
    assert found.folder(STAGE_1) is None
    assert found.cascade.parts[STAGE_1] == catalog.PUBLISHED["if-m"].parts[STAGE_1]
    assert found.folder(POSTPROCESS) == snapshot


def test_the_upscaler_is_not_there_without_its_index(
    cache: Path, download: Callable[..., Path]
) -> None:
    """The noise that it was trained with stands in `model_index.json`."""
    (download(X4, "upscaler") / "model_index.json").unlink()
    assert locate("if-m").folder(UPSCALER) is None


def test_damage_that_a_request_does_not_meet_is_no_matter(
    cache: Path, download: Callable[..., Path]
) -> None:
    """Of the cache too only what is used is looked at."""
    snapshot = download(FIRST, "stage_1")
    download(X4, "upscaler").joinpath("vae/config.json").write_text("{")
    found = locate("if-m", components=(TEXT_ENCODER, STAGE_1, POSTPROCESS))
    assert found.folder(STAGE_1) == snapshot
    assert "vae" in refused("if-m", CheckpointError)


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"../.."])
def test_a_broken_reference_means_no_snapshot(
    cache: Path, download: Callable[..., Path], content: bytes
) -> None:
    """What a killed writer left in `refs/` names no folder of the cache."""
    reference = download(FIRST, "stage_1").parents[1] / "refs/main"
    reference.write_bytes(content)
    assert snapshot_folder(FIRST) is None


def test_a_wrong_configuration_of_the_cache_is_named(
    cache: Path, download: Callable[..., Path]
) -> None:
    """What is downloaded is checked like a folder of one's own."""
    file = download(FIRST, "stage_1") / "unet/config.json"
    file.write_text(file.read_text().replace('"in_channels": 3', '"in_channels": 4'))
    assert f"{file}: in_channels is 4" in refused("if-m", CheckpointError)


def test_other_repositories_in_the_cache_are_no_matter(
    cache: Path, download: Callable[..., Path]
) -> None:
    """What belongs to another cascade is not taken for this one's."""
    download("DeepFloyd/IF-I-XL-v1.0", "stage_1")
    assert locate("if-m").folder(STAGE_1) is None
    assert locate("if-xl").folder(STAGE_1) is not None
