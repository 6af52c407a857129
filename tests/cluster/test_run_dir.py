"""Working copies of an object store, and the lock of a run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from clusterbench import ACCESS_KEY, SECRET_KEY, Place

from analysis.runs.object_store import Store, is_remote, join, split
from search.run_dir import folder as rundir
from search.run_dir.folder import Folder, working_folder
from search.run_dir.lock import locked
from trainables.config import DataConfig, RuntimeConfig, TeacherConfig
from trainables.data.load import load_data
from trainables.errors import InputError
from trainables.runtime.runtime import resolve
from trainables.teacher.training import train_teacher


@pytest.fixture
def bucket(place: Place, in_store: None, request: pytest.FixtureRequest) -> str:
    return place.bucket("t" + str(abs(hash(request.node.name)))[:12])


def contents(uri: str) -> dict[str, bytes]:
    store = Store.open(uri)
    return {name: store.read(name) for name in store.sizes()}


def test_what_is_written_to_a_working_copy_is_in_the_store(bucket: str) -> None:
    with working_folder(bucket) as folder:
        assert folder.remote and list(folder.path.iterdir()) == []
        (folder.path / "costs.json").write_text("one")
        folder.push()
        assert contents(bucket) == {"costs.json": b"one"}
        (folder.path / "costs.json").write_text("three")
        (folder.path / "report").mkdir()
        (folder.path / "report/index.html").write_text("page")
        for passed_over in (".lock", "half.tmp", "half.part"):
            (folder.path / passed_over).write_text("x")
        (folder.path / "trials").mkdir()
        (folder.path / "trials/result.json").write_text("Ray's")
        scratch = folder.path
    assert contents(bucket) == {"costs.json": b"three", "report/index.html": b"page"}
    assert not scratch.exists()
    with working_folder(bucket + "/") as again:
        assert [file.name for file in again.path.iterdir()] == ["costs.json"], "folders come when asked for"
        again.fetch("report", "other.csv")
        assert not (again.path / "report").exists()
        again.fetch("report")
        assert (again.path / "report/index.html").read_text() == "page"
        assert again.holds("report") and not again.holds("trials")
        again.remove("costs.json")
        again.push()
        assert contents(bucket) == {"report/index.html": b"page"}
        again.remove("report/index.html")
        again.remove("never there")
        (again.path / "report/index.html").write_text("a new page")
    assert contents(bucket) == {"report/index.html": b"a new page"}


def test_what_a_cleaner_takes_from_the_working_copy_stays_in_the_store(bucket: str) -> None:
    kept = {"costs.json": b"{}", "teacher.safetensors": b"weights", "report/index.html": b"page"}
    for name, content in kept.items():
        Store.open(bucket).write(name, content)
    with working_folder(bucket) as folder:
        folder.fetch("report")
        (folder.path / "experiment.yaml").write_text("name: x")
        folder.push()
        (folder.path / "costs.json").unlink()
        shutil.rmtree(folder.path / "report")
        folder.push()
        (folder.path / "teacher.safetensors").write_bytes(b"longer weights")
        folder.push()
        shutil.rmtree(folder.path)
        folder.push()
        folder.path.mkdir()
        (folder.path / "late").write_text("x")
    stored = kept | {"teacher.safetensors": b"longer weights", "experiment.yaml": b"name: x", "late": b"x"}
    assert contents(bucket) == stored


def test_a_working_copy_that_is_gone_ends_without_a_fault(bucket: str) -> None:
    with working_folder(bucket) as folder:
        (folder.path / "costs.json").write_text("{}")
        folder.push()
        shutil.rmtree(folder.path)
    assert contents(bucket) == {"costs.json": b"{}"}


def test_a_checkpoint_of_a_finished_training_is_deleted_in_the_store_as_well(bucket: str) -> None:
    data = load_data(DataConfig(name="digits", train_limit=60))
    runtime = resolve(RuntimeConfig(device="cpu", precision="fp32", layout="contiguous"))
    config = TeacherConfig(arch="cifar_resnet8", epochs=2, batch_size=32)
    seen: list[set[str]] = []
    with working_folder(bucket) as folder:

        def report(metrics: dict[str, Any]) -> None:
            folder.push()
            seen.append(set(contents(bucket)))

        train_teacher(config, data, runtime, folder.path / "teacher.safetensors", report=report)
        folder.push()
        assert {"teacher.safetensors", "teacher.json"} == set(contents(bucket))
    assert "teacher.ckpt" in seen[-1]


def test_what_was_written_reaches_the_store_whatever_ends_the_work(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rundir, "SYNC_SECONDS", 0.05)
    with pytest.raises(KeyboardInterrupt), working_folder(bucket) as folder:
        (folder.path / "teacher.ckpt").write_text("epoch 3")
        while "teacher.ckpt" not in contents(bucket):  # by itself
            time.sleep(0.05)
        (folder.path / "late").write_text("x")
        raise KeyboardInterrupt
    assert set(contents(bucket)) == {"teacher.ckpt", "late"}


def test_a_copy_that_cannot_be_pushed_is_kept(
    bucket: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = working_folder(bucket)
    opened = folder.__enter__()
    (opened.path / "model").write_text("weights")
    place.s3.delete_bucket(Bucket=bucket.split("/")[2])
    with pytest.raises(InputError, match=r"run\.dir: .*; files that were not uploaded are in ") as fault:
        folder.__exit__(None, None, None)
    assert str(opened.path) in str(fault.value)
    assert (opened.path / "model").read_text() == "weights"


@pytest.mark.parametrize("uri", ["s3://no-such-bucket-here/run", "s3://"])
def test_a_store_that_refuses_is_named_without_keys(in_store: None, uri: str) -> None:
    with pytest.raises(InputError, match=r"run\.dir: s3://") as fault, working_folder(uri) as folder:
        (folder.path / "x").write_text("x")
    assert SECRET_KEY not in str(fault.value) and ACCESS_KEY not in str(fault.value)


def test_places(tmp_path: Path) -> None:
    assert (
        is_remote("s3://b/x") and is_remote("gs://b") and not is_remote("runs/s3") and not is_remote(tmp_path)
    )
    assert join("s3://b/x/", "a", "b") == "s3://b/x/a/b" and join("runs/x", "a") == str(Path("runs/x/a"))
    assert split("s3://b/x/pick.yaml") == ("s3://b/x", "pick.yaml") and split("runs/p.yaml") == (
        "runs",
        "p.yaml",
    )
    with working_folder(tmp_path) as folder:
        assert folder.path == tmp_path and not folder.remote
    with pytest.raises(InputError, match="expected a folder, s3://"), working_folder("http://x/y"):
        pass


def free(database: str, name: str = "study", folder: Folder | None = None) -> bool:
    try:
        with locked(folder or Remote("s3://b/run", Path()), database, name):
            return True
    except InputError as fault:
        assert "another `ama search` is running" in str(fault) and "pa:ss" not in str(fault)
        return False


class Remote(Folder):
    """A folder of which nothing but its kind matters."""

    remote = True


def test_a_study_is_searched_by_one_process_at_a_time(database: str, tmp_path: Path) -> None:
    for url in (database, f"sqlite:///{tmp_path}/study.db"):
        with locked(Remote("s3://b/run", Path()), url, "study"):
            assert not free(url)
            assert free(url, "another study")
        assert free(url)
    local = Folder("run", tmp_path)
    with locked(local, f"sqlite:///{tmp_path}/a.db", "study"):
        assert not free(f"sqlite:///{tmp_path}/b.db", folder=local), "one run directory, whatever the study"


HOLDER = """
import sys, time
from pathlib import Path
from search.run_dir.lock import locked
from search.run_dir.folder import Folder
with locked(Folder("run", Path(sys.argv[2])), sys.argv[1], "study"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_lock_goes_with_the_process(database: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, database, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "held\n"
    assert not free(database)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    while not free(database):  # the server notices by itself
        time.sleep(0.05)


def test_the_lock_is_taken_again_when_its_connection_was_cut(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.run_dir.lock.PING_SECONDS", 0.05)
    admin = sa.create_engine(
        database.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT"
    )
    query = sa.text("select pid from pg_locks where locktype = 'advisory'")
    with locked(Remote("s3://b/run", Path()), database, "study"), admin.connect() as connection:
        (first,) = connection.execute(query).scalars()
        connection.execute(sa.text("select pg_terminate_backend(:pid)"), {"pid": first})
        while (holders := list(connection.execute(query).scalars())) in ([], [first]):
            time.sleep(0.05)
        assert len(holders) == 1 and not free(database)
    assert free(database)
    admin.dispose()


def test_a_database_that_is_not_there_is_no_second_search(database: str) -> None:
    wrong = database.replace("127.0.0.1:", "127.0.0.1:1")
    refusal = pytest.raises(InputError, match=r"storage\.study: cannot open the database .*:\*\*\*@")
    with refusal, locked(Remote("s3://b/run", Path()), wrong, "study"):
        pass
