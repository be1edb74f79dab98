r"""Paths that are too long for Windows, and what to type about them.

Windows refuses a path of more than 259 characters, unless it begins with \\?\ or the user has turned
long paths on for the whole system.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import sys
from pathlib import Path

LONGEST_PATH = 259
_LONGEST_FOLDER = 247
"""A folder must leave room for a file name of 8 + 3 characters."""

_INSIDE = 120
"""Characters of the longest path within a run folder, and some more."""

_PREFIX = "\\\\?\\"


def roomy(folder: Path) -> Path:
    r"""The folder, in the \\?\ form if Windows could not open the files in it otherwise."""
    if sys.platform != "win32":
        return folder
    absolute = os.path.abspath(folder)  # noqa: PTH100  Path.absolute() keeps "..", which \\?\ forbids
    if len(absolute) + _INSIDE <= LONGEST_PATH or long_paths_work():
        return folder
    return Path(long_form(absolute))


def long_form(absolute: str) -> str:
    r"""An absolute Windows path as \\?\C:\folder or \\?\UNC\server\share\folder."""
    if absolute.startswith(_PREFIX):
        return absolute
    if absolute.startswith("\\\\"):
        return f"{_PREFIX}UNC\\{absolute[2:]}"
    return _PREFIX + absolute


def too_long(path: Path) -> str:
    """Why this system cannot open a path of this length, and what to do; empty if it can."""
    if sys.platform != "win32":
        return ""
    absolute = os.path.abspath(path)  # noqa: PTH100
    fits = len(absolute) <= LONGEST_PATH and len(os.path.dirname(absolute)) <= _LONGEST_FOLDER  # noqa: PTH120
    if fits or absolute.startswith(_PREFIX) or long_paths_work():
        return ""
    return (
        f"its path has {len(absolute)} characters and Windows takes {LONGEST_PATH}: use a folder with a "
        "shorter name (for downloaded weights, set HF_HOME to one, such as C:\\hf), or turn on "
        "LongPathsEnabled in Windows"
    )


def long_paths_work() -> bool:
    """Whether this Windows opens long paths (LongPathsEnabled in its registry); True elsewhere."""
    if sys.platform != "win32":
        return True
    try:
        return bool(ctypes.WinDLL("ntdll").RtlAreLongPathsEnabled() & 0xFF)  # a BOOLEAN is one byte
    except (AttributeError, OSError):  # before Windows 10 1607
        return False


def right_to_read() -> str:
    """What to do if reading a file is not permitted."""
    if sys.platform == "win32":
        return "close the program that has it open, or let yourself read it (Properties, Security)"
    return "give yourself the permission (chmod -R u+rX)"


def quoted(path: Path) -> str:
    """A path quoted for a shell of this system; cmd and PowerShell know only double quotes."""
    if sys.platform == "win32":
        return subprocess.list2cmdline([str(path)])
    return shlex.quote(str(path))
