"""What is found out about a cluster before the first trial, by commands as they are typed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clusterbench import Place

Start = Callable[..., Any]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def fake_distribution(folder: Path, name: str, version: str) -> dict[str, str]:
    """An environment whose Python believes that another version of a package is installed."""
    place = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return {"PYTHONPATH": str(folder)}


NETS = """
import beside
from trainables.network.architectures import build_model

def make(num_classes):
    return build_model(beside.ARCH, num_classes, (3, 8, 8))
"""

CHECK = """
import json, os, shutil, sys
from pathlib import Path
from search.cluster.connection import connected
from search.cluster.slots import slots
from search.experiment.load import load_experiment
from search.cluster.preflight import preflight
from search.run_dir.folder import working_folder
from search.cluster.user_code import imports_of, modules_of
from trainables.errors import InputError

address, out, url, *overrides = sys.argv[1:]
experiment = load_experiment("tiny.yaml", overrides, out)
answers = {}
modules = modules_of(*imports_of(experiment))
with connected(address, modules=modules), working_folder(out) as folder:
    if "HIDE" in os.environ:  # so that nobody finds on this machine what was to be sent
        Path("hidden").mkdir()
        for module in modules:
            shutil.move(module, "hidden")
    try:
        answers["slots"] = slots(experiment.resources)
        preflight(experiment, folder, url)
    except InputError as fault:
        answers["fault"] = str(fault)
print(json.dumps(answers))
"""


def check(
    place: Place, address: str, out: object, *overrides: str, url: str | None = None, hide: bool = False
) -> dict[str, Any]:
    """What `slots` and `preflight` answer in a process of their own."""
    command = [sys.executable, "-c", CHECK, address, str(out), url or place.env["AMA_STUDY_URL"], *overrides]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=place.folder,
        env={**os.environ, **place.env, **({"HIDE": "1"} if hide else {})},
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_a_cluster_in_order_passes_and_keeps_nothing(place: Place, cluster: Any) -> None:
    uri = place.bucket("in-order")
    assert check(place, cluster.address, uri) == {"slots": 2}
    assert set(place.objects("in-order")) <= {"runs/first/"}, "at most the folder's own mark"
    (place.folder / "shared").mkdir()
    assert check(place, cluster.address, place.folder / "shared") == {"slots": 2}
    assert list((place.folder / "shared").iterdir()) == []


def test_all_faults_of_all_nodes_come_together(
    place: Place, start_cluster: Start, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # One node with another version; and a database that no node reaches; and a teacher that no node imports.
    other = fake_distribution(tmp_path_factory.mktemp("other"), "ama-search", "9.9")
    cluster = start_cluster({"num_cpus": 1}, {"num_cpus": 1, "env_vars": other})
    url = f"postgresql://ama:hunter2@127.0.0.1:{free_port()}/ama"
    answer = check(
        place, cluster.address, place.bucket("faults"), "teacher.arch=import:nowhere:make", url=url
    )
    head, *lines = answer["fault"].splitlines()
    assert head == "the cluster is not ready:" and "hunter2" not in answer["fault"]
    assert len(lines) == 5, answer["fault"]
    assert sum("ama-search 9.9, but the driver has 0." in line for line in lines) == 1
    assert sum("storage.study: the database at 127.0.0.1:" in line for line in lines) == 2
    assert sum("import:nowhere:make: cannot import nowhere" in line for line in lines) == 2
    assert all("(node " in line for line in lines)


def test_a_folder_that_is_not_shared_is_found_out(place: Place, cluster: Any, tmp_path: Path) -> None:
    """The driver in a mount namespace of its own: the same path is another folder there."""
    (tmp_path / "run").mkdir()
    (tmp_path / "mine").mkdir()
    script = f'mount --bind {tmp_path}/mine {tmp_path}/run && exec "$@"'
    probe = ["unshare", "--mount", "sh", "-c", script, "sh"]
    if subprocess.run([*probe, "true"], capture_output=True).returncode:
        pytest.skip("mounting needs rights that this process has not")
    command = [*probe, sys.executable, "-c", CHECK, cluster.address, str(tmp_path / "run")]
    done = subprocess.run(
        [*command, place.env["AMA_STUDY_URL"]],
        capture_output=True,
        text=True,
        cwd=place.folder,
        env={**os.environ, **place.env},
    )
    fault = json.loads(done.stdout.splitlines()[-1])["fault"]
    assert fault.count(f"run.dir: {tmp_path}/run on this node is not the driver's") == 2, fault


def test_the_users_own_teacher_reaches_the_workers(place: Place, cluster: Any, tmp_path: Path) -> None:
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(NETS)
    (tmp_path / "beside.py").write_text('ARCH = "cifar_resnet8"\n')
    (tmp_path / "unrelated.py").write_text("raise SystemExit\n")
    (tmp_path / "tiny.yaml").write_text((place.folder / "tiny.yaml").read_text())
    here = Place(place.env, place.s3, tmp_path)
    answer = check(
        here, cluster.address, place.bucket("own-teacher"), "teacher.arch=import:mine.nets:make", hide=True
    )
    assert answer == {"slots": 2}
    assert sorted(path.name for path in (tmp_path / "hidden").iterdir()) == ["beside.py", "mine"]


def test_too_little_on_every_node_is_refused(place: Place, cluster: Any) -> None:
    answer = check(place, cluster.address, place.bucket("too-little"), "resources.cpu=3")
    assert "a trial needs 3 CPUs, but there are 2 on the largest node" in answer["fault"]


def test_a_wrong_token_is_named(place: Place, start_cluster: Start, tmp_path: Path) -> None:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 32}
    script = (
        "from ray.cluster_utils import Cluster\n"
        "c = Cluster(True, head_node_args=dict(num_cpus=1, include_dashboard=False,"
        " object_store_memory=10**8))\n"
        "print(c.address, flush=True); input(); c.shutdown()"
    )
    head = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **token},
    )
    try:
        assert head.stdout
        address = head.stdout.readline().strip()
        arguments = ("search", "tiny.yaml", "--address", address, "--out", str(tmp_path / "run"))
        arguments += ("-o", "name=token")  # a study of its own in the database
        for env in ({**token, "RAY_AUTH_TOKEN": "b" * 32}, {"RAY_AUTH_MODE": "disabled"}):
            ended = place.ama(*arguments, **env)
            assert ended.code == 2 and "the cluster asks for a token" in ended.output, ended.output
    finally:
        head.communicate("\n")


def autoscaled(folder: Path, port: int) -> dict[str, Any]:
    """Arguments of a head whose autoscaler starts real nodes on this machine, from none."""
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
    from ray.util import get_node_ip_address

    kinds = {
        "worker": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 1},
        "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    }
    lists = ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands")
    commands = ("setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    settings = {
        "cluster_name": "here",
        "max_workers": 1,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.05,
        "provider": {"type": "fake_multinode", "gcs_address": f"{get_node_ip_address()}:{port}"},
        "available_node_types": kinds,
        "head_node_type": "head",
        **{name: [] for name in (*lists, *(f"{each}_commands" for each in commands))},
        **{name: {} for name in ("docker", "auth", "file_mounts", "head_node", "worker_nodes")},
        "file_mounts_sync_continuously": False,
    }
    (folder / "autoscaler.json").write_text(json.dumps(settings))
    return {
        "num_cpus": 0,
        "gcs_server_port": port,
        "autoscaling_config": str(folder / "autoscaler.json"),
        "env": {
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        },
    }


@pytest.mark.faults
def test_a_cluster_that_starts_from_no_workers(place: Place, start_cluster: Start, tmp_path: Path) -> None:
    cluster = start_cluster(autoscaled(tmp_path, free_port()))
    uri = place.bucket("from-none")
    arguments = ("search", "tiny.yaml", "--address", cluster.address, "--out", uri, "-o", "name=from-none")
    ended = place.ama(*arguments, "-o", "resources.concurrent=null")
    message = "resources.concurrent: expected the number of trials"
    assert ended.code == 2 and message in ended.output, ended.output
    ended = place.ama(*arguments)
    assert ended.code == 0 and "all trials used" in ended.output, ended.output
