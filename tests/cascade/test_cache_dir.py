"""Where things are kept for later runs, and what happens where there is no such place."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants
from runs import plan_of, run_here

from lowmem_if.cascade.cache_dir import cache_folder
from lowmem_if.errors import CacheError, HubError
from lowmem_if.hardware.calibration_file import machine_key, read_calibration
from lowmem_if.weights.files.weight_copies import find_converted
from lowmem_if.weights.hub import download


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user of a container who is in no passwd file and has no HOME."""
    import pwd

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "LOWMEM_IF_CACHE"):
        monkeypatch.delenv(name, raising=False)


def test_the_variable_is_enough(homeless: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With LOWMEM_IF_CACHE nobody asks for a home folder."""
    monkeypatch.setenv("LOWMEM_IF_CACHE", "/somewhere")
    assert cache_folder("embeds") == Path("/somewhere/embeds")


def test_without_a_place_the_error_names_the_variable(homeless: None) -> None:
    """What cannot do without a folder says which variable to set."""
    with pytest.raises(CacheError, match="set LOWMEM_IF_CACHE"):
        cache_folder("calibration")


def test_what_only_reads_finds_nothing(homeless: None, tiny: Path) -> None:
    """A missing cache is an empty one."""
    assert read_calibration("cpu", machine_key()) is None
    assert find_converted(tiny / "stage_1" / "unet") is None


def test_a_run_without_a_home_works_and_says_so(homeless: None, tiny: Path, tmp_path: Path) -> None:
    """Pictures are drawn; a notice says that embeddings are not kept, and what to set."""
    folder = run_here(plan_of(tiny, size=64), tmp_path / "run")
    assert folder.complete
    assert any("set LOWMEM_IF_CACHE" in notice for notice in folder.notices)


def test_no_folder_named_tilde_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub leaves `~` as it is; weights do not go to a folder of that name."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "~/.cache/huggingface/hub")
    with pytest.raises(HubError, match="set HF_HOME"):
        download._check_home()
