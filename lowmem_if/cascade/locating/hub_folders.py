"""Folders that a user names, and the folders of repositories in the Hugging Face cache."""

from __future__ import annotations

from pathlib import Path

from lowmem_if.cascade.module_files import folder_names
from lowmem_if.cascade.safetensors_header import unreadable
from lowmem_if.errors import CheckpointError
from lowmem_if.units import did_you_mean


def existing_folder(name: str) -> Path | None:
    """The absolute path of the folder that a user's text names; None if there is no such folder."""
    try:
        folder = Path(name).expanduser()
        return folder.resolve() if folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # too long, no such user, a zero byte
        return None


def near_folder(text: str) -> str:
    """The folder that a wrong path could mean, in words; empty if none is similar."""
    path = Path(text)
    try:
        parent = existing_folder(str(path.parent))
        names = folder_names(parent) if parent else set()
    except CheckpointError:  # the parent folder may not be read
        return ""
    near = did_you_mean(path.name, names)
    return near.replace("'", f"'{path.parent}/", 1) if near and str(path.parent) != "." else near


def snapshot_folder(repository: str, revision: str = "main") -> Path | None:
    """The folder of a downloaded repository in the Hugging Face cache; None if it is not there."""
    return snapshot_in(storage_folder(repository), revision)


def storage_folder(repository: str) -> Path:
    """The folder in which the Hugging Face cache keeps all revisions of a repository."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / storage_name(repository)


def storage_name(repository: str) -> str:
    """The name that a repository's folder has in the Hugging Face cache."""
    return f"models--{repository.replace('/', '--')}"


def snapshot_in(storage: Path, revision: str = "main") -> Path | None:
    """The snapshot of a branch, tag or commit in a repository's folder of a Hugging Face cache."""
    commit = _commit(storage / "refs" / revision) or revision
    snapshots = storage / "snapshots"
    return snapshots / commit if commit in folder_names(snapshots) else None


def newest_snapshot(storage: Path) -> Path | None:
    """The snapshot of `main` in a repository's folder, or the only one there is."""
    names = folder_names(storage / "snapshots")
    only = storage / "snapshots" / next(iter(names)) if len(names) == 1 else None
    return snapshot_in(storage) or only


def _commit(reference: Path) -> str:
    """The commit of a branch or tag in the cache; empty if the cache does not know it."""
    try:
        return reference.read_text(encoding="ascii").strip()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return ""
    except OSError as error:
        raise unreadable(reference, error) from error
