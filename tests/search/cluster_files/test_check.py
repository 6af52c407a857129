"""Cluster files: the shipped ones pass, broken ones are refused with what is wrong and where."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from search.cli.cluster_commands import app
from search.cluster_files.check import check, to_fill_in
from search.cluster_files.providers import _EC2, _ec2_parameters

TOP = Path(__file__).parents[3]
AWS, GCP, LOCAL, KUBERAY = (
    "cluster.yaml",
    "search/clusters/gcp.yaml",
    "search/clusters/local.yaml",
    "search/clusters/kuberay.yaml",
)
SHIPPED = (AWS, GCP, LOCAL, KUBERAY)

Broken = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def _at_the_top(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TOP)  # where `ray up` is run: file_mounts count from there


@pytest.fixture
def broken(tmp_path: Path) -> Broken:
    """The faults of a shipped file in which `old` was replaced by `new`, without the file's name."""

    def faults(file: str, *changes: tuple[str, str]) -> list[str]:
        text = (TOP / file).read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "broken.yaml"
        path.write_text(text)
        lines = check(path)
        assert all(line.startswith(str(path)) for line in lines)
        return [line.removeprefix(f"{path}: ") for line in lines]

    return faults


@pytest.mark.parametrize("file", SHIPPED)
def test_shipped_files_pass(file: str) -> None:
    assert check(file) == []


# File, what stands in it, what stands there instead, and what the fault's line then holds.
LAUNCHER = [
    (
        AWS,
        "min_workers: 0",
        "min_workers: 9",
        "types.gpu_spot.min_workers: expected at most max_workers, 8, got 9",
    ),
    (
        AWS,
        "max_workers: 9\n",
        "max_workers: 9\nidle: 3\n",
        "idle: expected a key of Ray's cluster files, got an un",
    ),
    (AWS, "minutes: 10", "minutes: ten", "idle_timeout_minutes: expected a number, got 'ten'"),
    (AWS, "minutes: 10", "minutes: -1", "idle_timeout_minutes: expected at least 0, got -1"),
    (
        AWS,
        "upscaling_speed:",
        "upscaling_sped:",
        "upscaling_sped: expected a key of Ray's cluster files, got an unkn",
    ),
    (AWS, "upscaling_speed:", "upscaling_sped:", "got an unknown one; the nearest is upscaling_speed"),
    (AWS, "cluster_name: ama-search\n", "", "cluster_name: expected a value, but the key is missing"),
    (
        AWS,
        "type: head",
        "type: main",
        "expected one of available_node_types (head, gpu_spot, gpu_on_demand), got 'main",
    ),
    (
        AWS,
        "{CPU: 0}",
        "{}",
        "types.head.resources.CPU: expected 0, so that the head runs no trials, got nothing",
    ),
    (
        AWS,
        "{CPU: 0}",
        "{CPU: 0, GPU: 1}",
        "head.resources.GPU: expected 0, so that the head runs no trials, got 1",
    ),
    (
        AWS,
        "analysis: analysis",
        "analysis: ./x",
        "file_mounts./home/ray/ama-search/analysis: expected a file or folder",
    ),
    (AWS, "analysis: analysis", "analysis: ./x", "got './x', which does not exist"),
    (
        AWS,
        "ray:2.60.0-py311-gpu",
        "ray:latest-gpu",
        "docker.worker_image: expected a tag that begins with Ray's ver",
    ),
    (
        AWS,
        "rayproject/ray:2.60.0-py311-gpu",
        "me/image",
        "docker.worker_image: expected a tag with a version",
    ),
    (GCP, "ray:2.60.0-py311-gpu", "ray-ml:2.9.0-gpu", "docker.worker_image: expected rayproject/ray, got"),
    (AWS, "MODE=token", "MODE=disabled", "docker.run_options: expected `-e RAY_AUTH_MODE=token`"),
    (AWS, "host=127.0.0.1", "host=0.0.0.0", "head_start_ray_commands: expected --dashboard-host=127.0.0.1"),
    (
        AWS,
        "cluster_name:",
        "max_workers: 1\ncluster_name:",
        "max_workers: duplicate key, on lines",
    ),
    (AWS, "provider:\n", "provider:\n\ttype: aws\n", "not valid YAML"),
    (
        AWS,
        "  container_name: ray\n",
        "",
        "the file: expected what Ray accepts, got from its check: Must provide a c",
    ),
    (
        AWS,
        "type: aws",
        "type: was",
        "the file: expected what Ray accepts, got from its check: Unsupported node pro",
    ),
    (AWS, "  region: us-west-2\n", "", "provider.region: expected a value, got nothing"),
    (
        AWS,
        "zone: us-west-2a",
        "zone: us-east-1a",
        "availability_zone: expected zones of us-west-2, got 'us-east-1a'",
    ),
    (
        AWS,
        "Type: m7i",
        "Typ: m7i",
        "head.node_config.InstanceTyp: expected a key of EC2's RunInstances, got an unkn",
    ),
    (AWS, "Type: m7i", "Typ: m7i", "got an unknown one; the nearest is InstanceType"),
    (
        AWS,
        "      SecurityGroupIds: *groups\n",
        "",
        "types.gpu_spot.node_config.SecurityGroupIds: expected a security",
    ),
    (
        AWS,
        "      SecurityGroupIds: *groups\n",
        "",
        "got none: Ray would make one with port 22 open to the world",
    ),
    (GCP, "  project_id: your-project\n", "", "provider.project_id: expected a value, got nothing"),
    (
        GCP,
        "  availability_zone: us-central1-a\n",
        "",
        "provider.availability_zone: expected a value, got nothing",
    ),
    (
        GCP,
        "machineType: n2",
        "machine_type: n2",
        "types.head.node_config.machine_type: expected a key of a Compute En",
    ),
    (
        GCP,
        "your-subnetwork",
        "x\n      accessConfigs: []",
        "networkInterfaces.0.accessConfigs: expected none, got a publ",
    ),
    (
        GCP,
        "      networkInterfaces: *network\n",
        "",
        "networkInterfaces: expected one without accessConfigs, got none",
    ),
    (LOCAL, "  head_ip: 192.0.2.10\n", "", "provider.head_ip: expected an address, got nothing"),
    (
        LOCAL,
        "192.0.2.11",
        "192.0.2.10",
        "provider.worker_ips: expected other hosts than the head, got 192.0.2.10 among",
    ),
    (LOCAL, "min_workers: 2", "min_workers: 3", "min_workers: expected at most max_workers, 2, got 3"),
    (
        LOCAL,
        "--num-cpus=0",
        "--num-cpus=8",
        "head_start_ray_commands: expected `ray start --head --num-cpus=0`, so th",
    ),
]
KUBE = [
    (
        "minReplicas: 0",
        "minReplicas: 9",
        "Cluster: spec.workerGroupSpecs.0.minReplicas: expected at most maxRepl",
    ),
    (
        "      replicas: 0",
        "      replicas: 9",
        "RayCluster: spec.workerGroupSpecs.0.replicas: expected 0 to 8, got 9",
    ),
    (
        "enableInTree",
        "enableTree",
        "spec.enableTreeAutoscaling: expected a key of KubeRay, got an unknown one; the nea",
    ),
    (
        "scaling: true",
        "scaling: 'yes'",
        "RayCluster: spec.enableInTreeAutoscaling: expected true or false, got 'yes'",
    ),
    ('cpus: "0"', "cpus: 0", "RayCluster: spec.headGroupSpec.rayStartParams.num-cpus: expected text, got 0"),
    (
        'cpus: "0"',
        'cpus: "8"',
        'headGroupSpec.rayStartParams.num-cpus: expected "0", so that the head runs no trials',
    ),
    ("n: 2.60.0", "n: 2.59.0", "containers.0.image: expected Ray 2.59.0, as rayVersion says, got 2.60.0 in"),
    (
        "  rayVersion: 2.60.0\n",
        "",
        "RayCluster: spec.rayVersion: expected the image's version of Ray, got nothing",
    ),
    (
        "- groupName: gpu-spot\n      replicas",
        "- replicas",
        "Specs.0.groupName: expected a value, but the key is miss",
    ),
    (
        "gpu-on-demand",
        "gpu-spot",
        "Specs.1.groupName: expected another name than the other groups', got 'gpu-spot'",
    ),
    ("ClusterIP", "LoadBalancer", "RayCluster: spec.headGroupSpec.serviceType: expected ClusterIP"),
    (
        "serviceType: ClusterIP",
        "enableIngress: true",
        "headGroupSpec.enableIngress: expected false, got true, a dash",
    ),
    ("mode: token", "mode: disabled", "RayCluster: spec.authOptions.mode: expected token, got 'disabled'"),
    (
        ":0.1.0-ray2.60.0-py311",
        ":latest",
        "headGroupSpec.template.spec.containers.0.image: expected a tag with a ver",
    ),
    (
        "cluster: ama-search",
        "cluster: x",
        "ray.io/cluster: expected a RayCluster of this file (ama-search), got 'x'",
    ),
    (
        "ray.io/cluster: ama",
        "cluster: ama",
        "RayJob: spec.clusterSelector: expected ray.io/cluster with the cluster",
    ),
    (
        "clusterSelector: {ray.io/cluster: ama-search}",
        "suspend: true",
        "spec: expected either rayClusterSpec or clust",
    ),
    (
        "K8sJobMode",
        "JobMode",
        "RayJob: spec.submissionMode: expected one of K8sJobMode, HTTPMode, InteractiveMode",
    ),
    ("ray.io/v1\n", "ray.io/v1alpha1\n", "RayCluster: apiVersion: expected ray.io/v1, got 'ray.io/v1alpha1'"),
    ("kind: RayJob", "kind: RayJobs", "RayJobs: kind: expected RayCluster or RayJob, got 'RayJobs'"),
    (
        "metadata:\n  name: ama-search",
        "metadata:\n  name: Ama_Search",
        "RayJob: metadata.name: expected text like",
    ),
    (
        "            volumeMounts:",
        "            volumeMount:",
        "containers.0.volumeMount: expected a key of KubeRay, got",
    ),
    ("kind: PersistentVolumeClaim", "kind: Secret", "Secret: kind: expected no Secret in the file"),
    (
        "  submission",
        "  entrypoint: x\n  submission",
        "spec.entrypoint: duplicate key, on lines",
    ),
]


@pytest.mark.parametrize(("file", "old", "new", "fault"), LAUNCHER)
def test_broken_launcher_files_are_refused(broken: Broken, file: str, old: str, new: str, fault: str) -> None:
    faults = broken(file, (old, new))
    assert any(fault in line for line in faults), faults


@pytest.mark.parametrize(("old", "new", "fault"), KUBE)
def test_broken_kuberay_files_are_refused(broken: Broken, old: str, new: str, fault: str) -> None:
    faults = broken(KUBERAY, (old, new))
    assert any(fault in line for line in faults), faults


def test_a_security_group_open_to_the_world(broken: Broken) -> None:
    rule = "{FromPort: 8265, ToPort: 8265, IpProtocol: tcp, IpRanges: [{CidrIp: 0.0.0.0/0}]}"
    faults = broken(
        AWS, ("provider:", f"provider:\n  security_group: {{GroupName: a, IpPermissions: [{rule}]}}")
    )
    assert faults == [
        "provider.security_group.IpPermissions.0: expected no port open to the world, got port 8265 open to "
        "0.0.0.0/0"
    ]


SECRETS = [
    (
        "-e RAY_AUTH_TOKEN_PATH=/mnt/ama/.ray_token",
        "-e AMA_STUDY_URL=postgresql://ama:hunter22@db/ama",
        "hunter22",
    ),
    ("-e RAY_AUTH_TOKEN_PATH=/mnt/ama/.ray_token", "-e RAY_AUTH_TOKEN=0123456789abcdef", "0123456789abcdef"),
    (
        "-e RAY_AUTH_MODE",
        "-e AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE -e RAY_AUTH_MODE",
        "AKIAIOSFODNN7EXAMPLE",
    ),
    (
        "  use_internal_ips: true",
        "  aws_credentials: {aws_secret_access_key: wJalrXUtnFEMI}",
        "wJalrXUtnFEMI",
    ),
    ("cluster_name: ama-search", "cluster_name: -----BEGIN RSA PRIVATE KEY-----", "BEGIN RSA"),
]


@pytest.mark.parametrize(("old", "new", "secret"), SECRETS)
def test_secrets_are_found_and_not_shown(broken: Broken, old: str, new: str, secret: str) -> None:
    faults = broken(AWS, (old, new))
    assert len(faults) == 1 and "expected no secret in a cluster file" in faults[0]
    assert secret not in faults[0]


def test_a_secret_is_not_shown_by_other_faults_either(broken: Broken) -> None:
    faults = broken(AWS, ("head_node_type: head", "head_node_type: postgresql://ama:hunter22@db/ama"))
    assert len(faults) == 2 and not any("hunter22" in fault for fault in faults)


def test_secret_in_a_pods_environment(broken: Broken) -> None:
    variable = "env: [{name: RAY_AUTH_TOKEN, value: abcdef}]"
    faults = broken(KUBERAY, ("envFrom: [{secretRef: {name: ama-search-study}}]", variable))
    assert len(faults) == 2 and all("a value of RAY_AUTH_TOKEN (not shown)" in fault for fault in faults)
    assert faults[0].startswith("RayCluster: spec.headGroupSpec.template.spec.containers.0.env.0.value: ")


@pytest.mark.parametrize("value", ["$TOKEN", "${TOKEN}", "$(cat /mnt/ama/token)"])
def test_what_the_environment_fills_in_is_no_secret(broken: Broken, value: str) -> None:
    assert broken(AWS, ("RAY_AUTH_TOKEN_PATH=/mnt/ama/.ray_token", f"RAY_AUTH_TOKEN={value}")) == []


def test_all_faults_at_once(broken: Broken) -> None:
    faults = broken(
        AWS,
        ("max_workers: 9\n", "max_workers: 9\nmax_workers: 2\n"),
        ("min_workers: 0\n", "min_workers: 2\n"),
        ("  region: us-west-2\n", ""),
        ("resources: {CPU: 0}", "resources: {CPU: 2}"),
        ("ray:2.60.0-py311-gpu", "ray:nightly-gpu"),
        ("trainables: trainables", "trainables: nowhere"),
    )
    keys = [fault.partition(":")[0] for fault in faults]
    assert keys == [
        "max_workers",  # twice in the file
        "available_node_types.gpu_on_demand.min_workers",
        "max_workers",  # below the sum of min_workers
        "available_node_types.head.resources.CPU",
        "provider.region",
        "file_mounts./home/ray/ama-search/trainables",
        "docker.worker_image",
    ]
    assert "expected at least 4, the sum of all types' min_workers, got 2" in faults[2]


def test_an_image_by_digest_is_pinned(broken: Broken) -> None:
    assert broken(AWS, ("rayproject/ray:2.60.0-py311-gpu", "registry:5000/ray@sha256:" + "0" * 64)) == []


def test_files_that_are_none(tmp_path: Path) -> None:
    assert "No such file" in check(tmp_path / "none.yaml")[0]
    empty, wrong, two = tmp_path / "empty.yaml", tmp_path / "wrong.yaml", tmp_path / "two.yaml"
    empty.write_text("# nothing\n")
    assert "got an empty one" in check(empty)[0]
    wrong.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in check(wrong)[0]
    two.write_text("a: 1\n---\nb: 2\n")
    assert "expected one YAML document for `ray up`, got 2" in check(two)[0]
    two.write_text("a: 1\n--- # the second\nb: '\n")
    assert check(two)[0].startswith(f"{two}, line 4: not valid YAML")  # counted from the file's top
    two.write_text("kind: RayJob\n---\nkind: RayJob\nkind: RayJob\n")
    assert check(two)[0] == f"{two}: kind: duplicate key, on lines 3 and 4; expected it once"


def test_wrong_types_are_faults_and_no_crash(tmp_path: Path) -> None:
    launcher, kuberay = tmp_path / "launcher.yaml", tmp_path / "kuberay.yaml"
    for kind in ("aws", "gcp", "local", "azure"):
        launcher.write_text(
            f"cluster_name: 1\nprovider: {{type: {kind}, security_group: {{IpPermissions: [1]}}}}\n"
            "available_node_types: {head: {node_config: {networkInterfaces: [1]}, resources: 3}, other: 5}\n"
            "docker: 7\nfile_mounts: [1]\nhead_start_ray_commands: 4\n"
        )
        assert any("cluster_name: expected text, got 1" in fault for fault in check(launcher))
    kuberay.write_text(
        "apiVersion: ray.io/v1\nkind: RayCluster\nmetadata: 3\nspec: {headGroupSpec: {template: {spec: "
        "{containers: [1]}}}, workerGroupSpecs: [1, {template: {spec: {containers: [{image: 3}]}}}]}\n"
    )
    assert any("metadata: expected a mapping, got 3" in fault for fault in check(kuberay))
    kuberay.write_text("apiVersion: v1\nkind: ConfigMap\n")
    assert "expected a RayCluster or a RayJob in it, got none" in check(kuberay)[0]


def test_job_with_a_cluster_of_its_own(tmp_path: Path) -> None:
    documents = list(yaml.safe_load_all((TOP / KUBERAY).read_text()))
    cluster, job = documents[1], documents[2]
    del job["spec"]["clusterSelector"]
    job["spec"] |= {"rayClusterSpec": cluster["spec"], "shutdownAfterJobFinishes": True, "suspend": True}
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    assert check(path) == []
    job["spec"]["shutdownAfterJobFinishes"] = False
    job["spec"]["rayClusterSpec"]["rayVersion"] = ""
    path.write_text(yaml.safe_dump(job))
    faults = [line.removeprefix(f"{path}: RayJob: ").partition(":")[0] for line in check(path)]
    assert faults[:2] == ["spec.suspend", "spec.rayClusterSpec.rayVersion"]


def test_gpu_workers_start_at_none_and_the_head_runs_nothing() -> None:
    for file in (AWS, GCP):
        types = yaml.safe_load((TOP / file).read_text())["available_node_types"]
        workers = {name: t for name, t in types.items() if name != "head"}
        assert all(t["min_workers"] == 0 and t["resources"]["GPU"] for t in workers.values())
        assert types["head"]["resources"] == {"CPU": 0}


def test_one_version_of_ray_everywhere() -> None:
    pins = (TOP / "search/clusters/constraints.txt").read_text()
    version = re.search(r"^ray==(.*)$", pins, re.MULTILINE)
    assert version
    for file in (*SHIPPED, "search/clusters/Dockerfile"):
        found = set(re.findall(r"(?:rayproject/ray:|-ray)(\d[\d.]+\d)", (TOP / file).read_text()))
        assert found == {version[1]}, file


def test_pins_name_packages_that_the_project_needs() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    needs = [*project["dependencies"], *project["optional-dependencies"]["postgres"], "psycopg-binary"]
    needed = {re.split(r"[\[<>=]", need)[0] for need in needs}
    lines = (TOP / "search/clusters/constraints.txt").read_text().splitlines()
    assert {line.partition("==")[0].lower() for line in lines if not line.startswith("#")} <= needed


def test_placeholders_are_told() -> None:
    assert to_fill_in(AWS) == [
        "metadata.image (ami-00000000000000000)",
        "metadata.groups.0 (sg-00000000000000000)",
        "initialization_commands.2 (fs-00000000000000000)",
    ]
    assert "provider.project_id (your-project)" in to_fill_in(GCP)


@pytest.mark.skipif(not find_spec("botocore"), reason="botocore, the source of the list, is not installed")
def test_ec2_parameters_are_those_of_botocore() -> None:
    assert _ec2_parameters() == set(_EC2.split())


def test_command(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text((TOP / AWS).read_text().replace("head_node_type: head", "head_node_type: h"))
    good = CliRunner().invoke(app, ["check", *SHIPPED])
    assert good.exit_code == 0
    assert CliRunner().invoke(app, ["check", AWS, str(bad)]).exit_code == 2


def test_command_says_what_it_found(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text((TOP / AWS).read_text().replace("head_node_type: head", "head_node_type: h"))
    with pytest.raises(SystemExit) as end:
        app(["check", AWS, str(bad)])
    said = capfd.readouterr().err
    assert end.value.code == 2
    assert f"{AWS}: ok" in said and "placeholder to replace: metadata.image (ami-00000000000000000)" in said
    assert "bad.yaml: head_node_type: expected one of available_node_types" in said
