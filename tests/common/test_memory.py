"""Memory that is available to this process on the machine and in its control groups, and memory that it returns."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import psutil
import pytest
import torch

from cgverify.common.memory import VERSION_1, VERSION_2, available, give_back_freed, taken, total


def group(folder: Path, names: tuple[str, str, str], limit: str, used: int, cached: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 7\n{names[2]} {cached}\n")


def process(tmp_path: Path, line: str) -> Path:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(f"3:cpu:/elsewhere\n{line}\n")
    return tmp_path / "proc"


def test_available_memory_without_a_limit_is_the_machines(tmp_path: Path) -> None:
    group(tmp_path / "a" / "b", VERSION_2, "max", 100, 0)
    for proc in (process(tmp_path, "0::/a/b"), tmp_path / "no proc"):
        assert total(proc, tmp_path) == psutil.virtual_memory().total
        assert available(proc, tmp_path) == pytest.approx(psutil.virtual_memory().available, rel=0.2)


@pytest.mark.parametrize(
    ("version", "line", "mount"), [(VERSION_1, "8:pids,memory:/a/b", "memory"), (VERSION_2, "0::/a/b", "")]
)
def test_narrowest_group_limits_memory_and_file_caches_are_free(
    tmp_path: Path, version: tuple[str, str, str], line: str, mount: str
) -> None:
    group(tmp_path / mount / "a" / "b", version, "9000", 1000, 0)
    group(tmp_path / mount / "a", version, "5000", 4000, 1500)
    proc = process(tmp_path, line)
    assert (total(proc, tmp_path), available(proc, tmp_path)) == (5000, 2500)


def test_root_group_in_a_container_limits_memory(tmp_path: Path) -> None:
    group(tmp_path, VERSION_2, "3000", 1000, 0)
    assert available(process(tmp_path, "0::/docker/0123"), tmp_path) == 2000


def test_group_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    group(tmp_path, VERSION_2, "3000", 4000, 0)
    assert available(process(tmp_path, "0::/"), tmp_path) == 0


def test_taken_memory_grows_by_an_allocation() -> None:
    before = taken()
    block = mmap.mmap(-1, 50_000_000)  # the heap might give out what was freed before
    for _ in range(50):
        block.write(bytes(1_000_000))
    assert 40_000_000 < taken() - before < 80_000_000
    block.close()


@pytest.mark.skipif(sys.platform != "linux", reason="malloc_trim is glibc's")
def test_free_memory_below_a_live_tensor_is_given_back() -> None:
    pieces = [torch.ones(2000) for _ in range(20_000)]  # 160 MB in pieces too small for mappings of their own
    kept = pieces[-1]
    pieces.clear()
    before = taken()
    give_back_freed()
    assert before - taken() > 100_000_000
    assert kept.sum() == 2000
