"""The container's memory limit, read from file trees made here."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_if.hardware.cgroups import GroupMemory, tightest_group

GB = 10**9
V1_UNLIMITED = 9223372036854771712
"""What the kernel writes into memory.limit_in_bytes where there is no limit."""

BASE = "sys/fs/cgroup"


def put(root: Path, path: str, text: object) -> None:
    """A file of the made-up system."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(text, bytes):
        file.write_bytes(text)
    else:
        file.write_text(f"{text}\n")


def member(root: Path, *lines: str) -> None:
    """What /proc/self/cgroup says about this process."""
    put(root, "proc/self/cgroup", "\n".join(lines))


def v2(root: Path, group: str, limit: object, usage: object = 0, inactive: object = 0) -> str:
    """A group of version 2; returns its folder."""
    folder = f"{BASE}/{group}".rstrip("/")
    put(root, f"{folder}/memory.max", limit)
    put(root, f"{folder}/memory.current", usage)
    # Version 1's name of the same statistic must not be taken for it.
    put(root, f"{folder}/memory.stat", f"anon 77\ninactive_file {inactive}\ntotal_inactive_file 1")
    return str(root / folder)


def v1(root: Path, group: str, limit: object, usage: object = 0, inactive: object = 0) -> str:
    """A group of version 1; returns its folder."""
    folder = f"{BASE}/memory/{group}".rstrip("/")
    put(root, f"{folder}/memory.limit_in_bytes", limit)
    put(root, f"{folder}/memory.usage_in_bytes", usage)
    # `inactive_file` is the group's own share without its children's: the total one counts.
    put(root, f"{folder}/memory.stat", f"cache 5\ninactive_file 1\ntotal_inactive_file {inactive}")
    return str(root / folder)


def test_without_control_groups_nothing_limits(tmp_path: Path) -> None:
    """No /proc/self/cgroup (macOS, Windows) means no limit."""
    assert tightest_group(tmp_path) is None


def test_a_process_in_an_unlimited_root_group_is_not_limited(tmp_path: Path) -> None:
    """A root group has no memory.max at all: no limit."""
    member(tmp_path, "0::/")
    put(tmp_path, f"{BASE}/cgroup.controllers", "cpu memory")
    assert tightest_group(tmp_path) is None


def test_v2_counts_usage_less_the_page_cache_that_can_be_dropped(tmp_path: Path) -> None:
    """What is available under a version 2 limit is limit - (usage - inactive_file)."""
    member(tmp_path, "0::/app")
    folder = v2(tmp_path, "app", 4 * GB, 3 * GB, GB // 2)
    assert tightest_group(tmp_path) == GroupMemory(4 * GB, 3 * GB // 2, folder)


def test_v1_counts_usage_less_the_page_cache_that_can_be_dropped(tmp_path: Path) -> None:
    """What is available under a version 1 limit is limit - (usage - total_inactive_file)."""
    member(tmp_path, "7:cpu,cpuacct:/other", "4:memory:/docker/abc")
    folder = v1(tmp_path, "docker/abc", 4 * GB, 3 * GB, GB // 2)
    assert tightest_group(tmp_path) == GroupMemory(4 * GB, 3 * GB // 2, folder)


@pytest.mark.parametrize("tightest", ["", "a", "a/b", "a/b/c"])
@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_ancestor_wins(tmp_path: Path, version: int, tightest: str) -> None:
    """Of nested groups the one that leaves the least is taken, wherever on the way up it is."""
    make, line = (v1, "4:memory:/a/b/c") if version == 1 else (v2, "0::/a/b/c")
    member(tmp_path, line)
    for group in ("", "a", "a/b", "a/b/c"):
        make(tmp_path, group, 8 * GB, GB)
    folder = make(tmp_path, tightest, 4 * GB, 2 * GB)
    assert tightest_group(tmp_path) == GroupMemory(4 * GB, 2 * GB, folder)


def test_tightest_means_least_available_and_not_smallest_limit(tmp_path: Path) -> None:
    """A wide limit that neighbours have used up is tighter than a narrow unused one."""
    member(tmp_path, "0::/pod/app")
    v2(tmp_path, "pod/app", 4 * GB, 0)
    folder = v2(tmp_path, "pod", 8 * GB, 7 * GB)
    assert tightest_group(tmp_path) == GroupMemory(8 * GB, GB, folder)


def test_max_means_no_limit_and_ancestors_still_count(tmp_path: Path) -> None:
    """A group that says "max" limits nothing, its ancestor may."""
    member(tmp_path, "0::/pod/app")
    v2(tmp_path, "pod/app", "max", 3 * GB)
    assert tightest_group(tmp_path) is None
    folder = v2(tmp_path, "pod", 6 * GB, GB)
    assert tightest_group(tmp_path) == GroupMemory(6 * GB, 5 * GB, folder)


def test_the_huge_number_of_v1_means_no_limit(tmp_path: Path) -> None:
    """Version 1 writes "no limit" as 2**63 rounded down to a page."""
    member(tmp_path, "4:memory:/app")
    v1(tmp_path, "app", V1_UNLIMITED, GB)
    v1(tmp_path, "", V1_UNLIMITED, GB)
    assert tightest_group(tmp_path) is None


@pytest.mark.parametrize(("old", "new"), [(4, 2), (2, 4)])
def test_on_a_hybrid_system_both_versions_count(tmp_path: Path, old: int, new: int) -> None:
    """Where version 2 is mounted beside version 1 (`unified`), the tighter of the two is taken."""
    member(tmp_path, "4:memory:/a", "1:name=systemd:/a", "0::/b")
    first = v1(tmp_path, "a", old * GB)
    second = v2(tmp_path, "unified/b", new * GB)
    expected = first if old < new else second
    assert tightest_group(tmp_path) == GroupMemory(2 * GB, 2 * GB, expected)


def test_groups_of_other_controllers_are_not_ours(tmp_path: Path) -> None:
    """The path of the cpu controller, or of one whose name only contains "memory", is not looked at."""
    member(tmp_path, "3:cpu,cpuacct:/decoy", "5:memory_pressure:/decoy", "4:memory:/own")
    v1(tmp_path, "decoy", GB)
    folder = v1(tmp_path, "own", 4 * GB)
    assert tightest_group(tmp_path) == GroupMemory(4 * GB, 4 * GB, folder)


def test_memory_mounted_with_other_controllers_is_found(tmp_path: Path) -> None:
    """The memory controller may stand in a list."""
    member(tmp_path, "4:cpu,memory,pids:/own")
    folder = v1(tmp_path, "own", 4 * GB)
    assert tightest_group(tmp_path) == GroupMemory(4 * GB, 4 * GB, folder)


@pytest.mark.parametrize("version", [1, 2])
def test_a_path_that_is_not_under_the_mount_falls_back_to_the_mount(
    tmp_path: Path, version: int
) -> None:
    """In a container the path is often the host's; the container's own limit is at the mount."""
    make, line = (v1, "4:memory:/docker/0123") if version == 1 else (v2, "0::/docker/0123")
    member(tmp_path, line)
    folder = make(tmp_path, "", 4 * GB, GB)
    assert tightest_group(tmp_path) == GroupMemory(4 * GB, 3 * GB, folder)


def test_a_path_that_leads_out_of_the_mount_is_not_followed(tmp_path: Path) -> None:
    """`/../x` names a group outside the namespace, which the mount does not show."""
    member(tmp_path, "0::/../x")
    put(tmp_path, "sys/fs/x/memory.max", 1)
    (tmp_path / BASE).mkdir(parents=True)
    assert tightest_group(tmp_path) is None
    folder = v2(tmp_path, "", 4 * GB)
    assert tightest_group(tmp_path) == GroupMemory(4 * GB, 4 * GB, folder)


def test_a_path_with_colons_and_spaces_is_one_path(tmp_path: Path) -> None:
    """Only the first two colons of a line separate."""
    member(tmp_path, "0::/user.slice/a:b c")
    folder = v2(tmp_path, "user.slice/a:b c", 4 * GB)
    assert tightest_group(tmp_path) == GroupMemory(4 * GB, 4 * GB, folder)


@pytest.mark.parametrize(
    ("usage", "inactive", "available"),
    [
        (GB, 2 * GB, 4 * GB),  # statistics lag behind the usage: nothing is used
        (5 * GB, 0, 0),  # a limit lowered under the usage
        (4 * GB, 0, 0),
        ("garbage", 0, 4 * GB),
        (GB, "many", 3 * GB),
        ("", "", 4 * GB),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_odd_usages_stay_between_nothing_and_the_limit(
    tmp_path: Path, version: int, usage: object, inactive: object, available: int
) -> None:
    """Whatever the readings are, what is available is neither less than 0 nor more than the limit."""
    make, line = (v1, "4:memory:/a") if version == 1 else (v2, "0::/a")
    member(tmp_path, line)
    folder = make(tmp_path, "a", 4 * GB, usage, inactive)
    assert tightest_group(tmp_path) == GroupMemory(4 * GB, available, folder)


@pytest.mark.parametrize("limit", ["", "garbage", "-1", "1.5e9", "4 GB", b"\xff\xfe\x00"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_limit_that_is_no_number_is_no_limit(tmp_path: Path, version: int, limit: object) -> None:
    """Garbage in the limit's file, text or bytes, counts as no limit."""
    make, line = (v1, "4:memory:/a") if version == 1 else (v2, "0::/a")
    member(tmp_path, line)
    make(tmp_path, "a", limit)
    assert tightest_group(tmp_path) is None


def test_missing_usage_and_statistics_leave_the_limit(tmp_path: Path) -> None:
    """A group with nothing but a limit offers all of it."""
    member(tmp_path, "0::/a")
    put(tmp_path, f"{BASE}/a/memory.max", 4 * GB)
    assert tightest_group(tmp_path) == GroupMemory(4 * GB, 4 * GB, str(tmp_path / BASE / "a"))


@pytest.mark.parametrize("statistic", ["inactive_file", "\n \n", "inactive_file_x 9", b"\xff\xfe"])
def test_odd_statistics_count_as_no_cache(tmp_path: Path, statistic: object) -> None:
    """A statistics file without the value in it does not disturb the reading."""
    member(tmp_path, "0::/a")
    v2(tmp_path, "a", 4 * GB, GB)
    put(tmp_path, f"{BASE}/a/memory.stat", statistic)
    found = tightest_group(tmp_path)
    assert found is not None
    assert found.available_bytes == 3 * GB


@pytest.mark.parametrize(
    "lines", [b"", b"\n\n", b"garbage", b"0", b"0:", b":::", b"\xff\xfe::/\xff\n", b"4:memory"]
)
def test_garbage_in_the_membership_file_is_passed_over(tmp_path: Path, lines: bytes) -> None:
    """Lines that are no membership, or no text, limit nothing and raise nothing."""
    put(tmp_path, "proc/self/cgroup", lines)
    assert tightest_group(tmp_path) is None


def test_a_folder_where_a_file_should_be_is_passed_over(tmp_path: Path) -> None:
    """A control file that cannot be read counts as not there."""
    member(tmp_path, "0::/a")
    (tmp_path / BASE / "a" / "memory.max").mkdir(parents=True)
    assert tightest_group(tmp_path) is None


@settings(derandomize=True, database=None, deadline=None, max_examples=25)
@given(
    st.lists(
        st.tuples(st.integers(1, 10**11), st.integers(0, 10**11), st.integers(0, 10**11)),
        min_size=1,
        max_size=4,
    )
)
def test_nobody_on_the_way_up_leaves_less_than_the_tightest(
    tmp_path_factory: pytest.TempPathFactory, groups: list[tuple[int, int, int]]
) -> None:
    """For any nesting of limits and usages the answer is the smallest of what each of them leaves."""
    root = tmp_path_factory.mktemp("root")
    path = ""
    for number, (limit, usage, inactive) in enumerate(groups):
        v2(root, path, limit, usage, inactive)
        path += f"/{number}"
    member(root, f"0::{path}")
    left = min(min(limit, max(0, limit - max(0, u - i))) for limit, u, i in groups)
    found = tightest_group(root)
    assert found is not None
    assert found.available_bytes == left


def test_this_very_machine_can_be_read() -> None:
    """On the real file system there is an answer or none, and it is a sensible one."""
    found = tightest_group()
    assert found is None or 0 <= found.available_bytes <= found.limit_bytes
