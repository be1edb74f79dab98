"""Exit codes in words."""

from __future__ import annotations

import pytest

from lowmem_if.system import exit_codes


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (0, None),
        (1, None),
        (3, None),
        (-9, exit_codes.Ending("SIGKILL", "the system killed the worker")),
        (-7, exit_codes.Ending("SIGBUS", of_lost_file=True)),
        (-11, exit_codes.Ending("SIGSEGV")),
        (-60, exit_codes.Ending("signal 60")),
        (0xC0000005, exit_codes.Ending("0xC0000005 (access violation)")),
        (0xC0000006, exit_codes.Ending("0xC0000006 (a page could not be read)", of_lost_file=True)),
        (0xC0000017, exit_codes.Ending("0xC0000017 (not enough memory)", "Windows ended the worker: "
                                    "0xC0000017 (not enough memory)")),
        (0xC0FFEE00, exit_codes.Ending("0xC0FFEE00")),
    ],
)  # fmt: skip
def test_an_exit_code_is_told_in_words(code: int, expected: exit_codes.Ending | None) -> None:
    """Signals by name, statuses of Windows in hex; what a program chose itself is none."""
    assert exit_codes.ending(code) == expected
