"""An object store, a database and a Ray cluster of two nodes, all real and all on this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "faults" / "parts"))
sys.path.insert(0, str(Path(__file__).parent / "parts"))

from clusterbench import ACCESS_KEY, PASSWORD, SECRET_KEY, TINY, Place
from server import Postgres


@pytest.fixture(scope="session")
def store() -> Iterator[tuple[str, Any]]:
    """Endpoint of an S3 server on loopback, and a client."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
    )
    yield endpoint, client
    server.stop()


@pytest.fixture(scope="session")
def database() -> Iterator[str]:
    """URL of a database whose user has a password with every sign that means something in a URL."""
    import psycopg

    with Postgres.running() as server:
        with psycopg.connect(server.url().replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("create role ama login password '" + PASSWORD + "'")
            connection.execute("create database ama owner ama")
        yield f"postgresql://ama:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}/ama"


@pytest.fixture(scope="session")
def keys(store: tuple[str, Any]) -> dict[str, str]:
    """The environment that reaches the object store."""
    return {
        "AWS_ENDPOINT_URL_S3": store[0],
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.fixture(scope="session")
def place(
    store: tuple[str, Any], keys: dict[str, str], database: str, tmp_path_factory: pytest.TempPathFactory
) -> Place:
    """Where the commands of these tests run: a folder with an experiment, and their environment."""
    folder = tmp_path_factory.mktemp("laptop")
    (folder / "tiny.yaml").write_text(TINY)
    return Place({**keys, "AMA_STUDY_URL": database}, store[1], folder)


@pytest.fixture
def in_store(keys: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The object store's environment in this process."""
    for name, value in keys.items():
        monkeypatch.setenv(name, value)


Start = Callable[..., Any]


@pytest.fixture(scope="session")
def start_cluster(keys: dict[str, str]) -> Iterator[Start]:
    """`start_cluster({...}, {...})`: a cluster whose nodes have these arguments, the head first."""
    from ray.cluster_utils import Cluster

    running = []

    def start(head: dict[str, Any], *nodes: dict[str, Any]) -> Any:
        common = {"include_dashboard": False, "object_store_memory": 100 * 1024**2}
        with pytest.MonkeyPatch.context() as patch:  # nodes take the environment that they are started in
            for name, value in {**keys, **head.pop("env", {})}.items():
                patch.setenv(name, value)
            cluster = Cluster(initialize_head=True, head_node_args={**common, **head})
            running.append(cluster)
            for node in nodes:
                cluster.add_node(**{**common, **node})
        return cluster

    yield start
    for cluster in running:
        cluster.shutdown()


@pytest.fixture(scope="session")
def cluster(start_cluster: Start) -> Any:
    """A head that runs no trials, and a worker."""
    return start_cluster({"num_cpus": 0}, {"num_cpus": 2})
