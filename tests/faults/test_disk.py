"""A disk that fills up under a search: a small file system of its own holds the run."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from faultbench import Bench, check_epochs, check_rows, wait_until

from trainables.training.checkpoint import load_checkpoint, save_checkpoint


class Disk:
    """A mounted file system that can be filled to the last byte and made free again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        block = bytes(64 * 1024)
        with (self.folder / "filler").open("wb", buffering=0) as file:
            while block:
                try:
                    file.write(block)
                except OSError as fault:
                    assert fault.errno == errno.ENOSPC
                    block = block[: len(block) // 2]

    def free(self) -> None:
        (self.folder / "filler").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"needs to mount a file system: {mounted.stderr.strip()}")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_checkpoint_on_a_full_disk_leaves_the_one_before(disk: Disk) -> None:
    path = disk.folder / "checkpoint.pt"
    for epoch in (1, 2):
        save_checkpoint(path, {"epoch": epoch})
    disk.fill()
    with pytest.raises(OSError) as fault:
        save_checkpoint(path, {"epoch": 3, "weights": torch.zeros(10**6)})
    assert fault.value.errno == errno.ENOSPC
    assert load_checkpoint(path)["epoch"] == 2 and not list(disk.folder.glob("*.tmp"))
    disk.free()
    save_checkpoint(path, {"epoch": 3, "weights": torch.zeros(10**6)})
    assert load_checkpoint(path)["epoch"] == 3


@pytest.mark.faults
@pytest.mark.parametrize("place", ["run", "run and study"])
def test_a_full_disk_ends_or_pauses_a_search(tmp_path: Path, teacher: Path, disk: Disk, place: str) -> None:
    bench = Bench(
        tmp_path,
        teacher,
        run=disk.folder / "run",
        study=f"sqlite:///{tmp_path}/study.db" if place == "run" else None,
        environment={"AMA_TEST_SECONDS": "0.3"},
    )
    process = bench.start()
    assert bench.wait_for_epochs(8, process), bench.said()
    disk.fill()
    wait_until(lambda: "disk is full" in bench.said(), "a word about the full disk")
    if place == "run":  # it ends: nothing can be kept any more
        bench.finish(process, code=1)
    paused = process.poll() is None
    disk.free()
    if paused:  # for the study to be written; it may still end because of a checkpoint
        process.wait(400)
        bench.kill()
    said = bench.said()
    assert "Traceback" not in said, said
    lines = [line for line in said.splitlines() if "disk is full" in line]
    assert len(lines) <= 2, said  # that it waits, and that it ended
    assert {row.state.name for row in bench.rows()} <= {"COMPLETE", "PRUNED", "WAITING", "RUNNING"}
    if "all trials used" not in said:
        assert process.returncode == 1 and "continue with --resume" in said, said
        bench.finish(bench.start("--resume"))
    check_rows(bench)
    check_epochs(bench, 1)
    how = "paused and went on" if "all trials used" in said else "ended, resumed"
    print(f"disk full ({place}): {how}", flush=True)
    assert not [row for row in bench.rows() if "retries" in row.user_attrs]
