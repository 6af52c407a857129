"""Nodes that go away under a search: several Ray nodes on this machine, without a cloud."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faultbench import Bench, Epoch, check_epochs, check_rows, key_of, wait_until
from ray.cluster_utils import Cluster

from search.tune.callback import NODE_LOST

GOES_ON_SECONDS = 30.0
# Ray takes five missed heartbeats (15 s) to give a killed node up, and a new worker imports torch.
NOTICED_SECONDS = 120.0


class Nodes:
    """A head without CPUs, and workers of one CPU each."""

    def __init__(self, bench: Bench, workers: int) -> None:
        # The nodes' processes hand their environment to the trials' workers.
        kept = dict(os.environ)
        os.environ.update(bench.environment)
        try:
            small = {"include_dashboard": False, "object_store_memory": 100 * 1024**2}
            self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
            self.workers = [
                self.cluster.add_node(num_cpus=1, object_store_memory=100 * 1024**2) for _ in range(workers)
            ]
            self.cluster.wait_for_nodes()
        finally:
            os.environ.clear()
            os.environ.update(kept)

    def raylet(self, node: Any) -> int:
        """The process that is a node."""
        (info,) = node.all_processes["raylet"]
        return int(info.process.pid)

    def node_of(self, pid: int) -> Any:
        """The node whose raylet started the process."""
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        (node,) = [node for node in self.workers if self.raylet(node) == parent]
        return node


@pytest.fixture
def bench(tmp_path: Path, teacher: Path) -> Bench:
    return Bench(
        tmp_path,
        teacher,
        environment={"AMA_TEST_SECONDS": "1.0"},
        budget={"trials": 6, "epochs": 8, "grace_epochs": 8},
    )


@pytest.fixture
def nodes(bench: Bench) -> Iterator[Nodes]:
    nodes = Nodes(bench, workers=3)
    yield nodes
    nodes.cluster.shutdown()
    bench.kill()


def in_training(bench: Bench, process: subprocess.Popen[bytes], epochs: int) -> Epoch:
    """The newest line of a trial that has trained so many epochs and is in the middle of the next."""
    ended = {(line.key, line.epoch) for line in bench.epochs()}

    def found() -> Epoch | None:
        assert process.poll() is None, bench.said()
        began = bench.epochs("began")
        ended.update((line.key, line.epoch) for line in bench.epochs())
        open_epochs = [line for line in began if (line.key, line.epoch) not in ended]
        return next((line for line in open_epochs if epochs < line.epoch < 7), None)

    line = wait_until(found, "a trial in the middle of an epoch")
    assert isinstance(line, Epoch)
    return line


@pytest.mark.faults
@pytest.mark.parametrize("how", ["removed", "killed"])
def test_a_lost_node_costs_an_epoch_at_most(bench: Bench, nodes: Nodes, how: str) -> None:
    process = bench.start("--address", nodes.cluster.address)
    victim = in_training(bench, process, 3)
    node = nodes.node_of(victim.pid)
    lost_at = time.time()
    if how == "removed":
        nodes.cluster.remove_node(node, allow_graceful=False)
    else:
        os.kill(nodes.raylet(node), signal.SIGKILL)

    def elsewhere() -> list[Epoch]:
        return [line for line in bench.epochs() if line.time > lost_at and line.pid != victim.pid]

    wait_until(elsewhere, "any epoch after the loss", GOES_ON_SECONDS)
    said = bench.finish(process)
    assert "all trials used" in said, said
    check_rows(bench, trials=6)
    again = check_epochs(bench, 1)
    # A worker may outlive its killed node for some epochs: the lost trial is the one that Ray took up again.
    (retried,) = [row for row in bench.rows() if "retries" in row.user_attrs]
    assert retried.user_attrs["retries"] == 1
    assert NODE_LOST.search(retried.user_attrs["retry_reason"]), retried.user_attrs["retry_reason"]
    took = min(line.time for line in elsewhere() if line.key == key_of(retried)) - lost_at
    assert took < NOTICED_SECONDS
    print(f"node {how}: the lost trial went on {took:.1f} s later; epochs again {again}", flush=True)
