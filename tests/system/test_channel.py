"""The way from one process to its child, on systems that can pass descriptors and on others."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from other_systems import On
from runs import plan_of
from safetensors.torch import load_file

from lowmem_if.api.run import run
from lowmem_if.cli import main as cli
from lowmem_if.engine import session
from lowmem_if.system import channel


def test_a_pipe_carries_lines_until_it_is_closed(on: On) -> None:
    """Windows' way: no descriptors come along, and the end is the end."""
    on("win32", channel)
    line = channel.Channel()
    with Path(os.devnull).open("rb") as lock:
        line.send(b"one\n", lock.fileno())
    line.send(b"x" * 9000 + b"\n")
    line.close()
    assert list(channel.received(line.far_end)) == [(b"one\n", None), (b"x" * 9000 + b"\n", None)]
    os.close(line.far_end)


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, ""), OSError(errno.EINVAL, "")])
def test_who_is_gone_is_told_nothing_on_windows(
    on: On, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    """A closed pipe is EINVAL there; what else goes wrong is an error."""

    def write(descriptor: int, data: bytes) -> int:
        raise error

    on("win32", channel)
    fake = SimpleNamespace(pipe=os.pipe, close=os.close, write=write)
    monkeypatch.setattr(channel, "os", fake)
    line = channel.Channel()
    line.send(b"order\n")
    line.close()
    os.close(line.far_end)
    assert not channel.says_closed(OSError(errno.ENOSPC, ""))
    assert not channel.says_closed(OSError(errno.EINVAL, "", "a file"))
    on("linux", channel)
    assert not channel.says_closed(OSError(errno.EINVAL, ""))


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_standard_input_is_empty_once_orders_are_read_elsewhere(kind: str) -> None:
    """Whoever asks for descriptor 0 then gets the null device, and the orders arrive all the same."""
    code = (
        "import os\n"
        "from lowmem_if.system.channel import received, take_input\n"
        "line = take_input()\n"
        "assert os.path.samestat(os.fstat(0), os.stat(os.devnull))\n"
        "assert os.read(0, 1) == b''\n"
        "print([text for text, _ in received(line)])\n"
    )
    if kind == "pipe":
        far, near = os.pipe()
        os.write(near, b"a\nb\n")
        os.close(near)
    else:
        ours, theirs = socket.socketpair()
        ours.sendall(b"a\n")
        ours.close()
        far = theirs.detach()
    done = subprocess.run([sys.executable, "-c", code], stdin=far, capture_output=True, text=True)
    os.close(far)
    assert done.stdout.strip() == ("[b'a\\n', b'b\\n']" if kind == "pipe" else "[b'a\\n']"), done


@pytest.mark.parametrize(("name", "code"), [(None, 1), ("a file", 3)])
def test_a_pipe_that_nobody_reads_is_no_bug_of_ours(
    on: On, monkeypatch: pytest.MonkeyPatch, name: str | None, code: int
) -> None:
    """`lowmem-if probe | more`, left early: EINVAL on Windows, where it names no file."""

    def fail(*_args: object, **_options: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument", name)

    on("win32", channel)
    monkeypatch.setattr(session, "choose_machine", fail)
    assert cli.main(["probe"]) == code


@pytest.mark.worker
def test_a_worker_draws_the_same_through_a_pipe(on: On, tiny: Path, tmp_path: Path) -> None:
    """The whole way of Windows, with a real worker."""
    plan = plan_of(tiny, size=64)
    usual = run(plan, tmp_path / "socket").folder
    on("win32", channel)
    piped = run(plan, tmp_path / "pipe").folder
    name = "stage_1/0000.safetensors"
    assert torch.equal(load_file(usual / name)["tensor"], load_file(piped / name)["tensor"])
