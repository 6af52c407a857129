"""What Ray tells the searcher, and what the rows say afterwards: a real study, results fed by hand."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from search.experiment.experiment import Experiment
from search.policy.limits import Limit
from search.policy.proposer import Proposer
from search.policy.space import SearchSpace
from search.study.record import StudyRecord
from search.tune.board import Board
from search.tune.callback import StudyCallback, cause
from search.tune.searcher import NODE_LOSSES, StudySearcher
from search.tune.verdicts import Verdicts
from trainables.blocks.blocks import Block, find_blocks
from trainables.config import DistillConfig, StudentSpec
from trainables.costs.table import Costs
from trainables.network.architectures import build_model

DIRECTIONS = {"val_accuracy": "maximize", "flops": "minimize"}


@pytest.fixture(scope="module")
def blocks() -> tuple[Block, ...]:
    return find_blocks(build_model("cifar_resnet8", 10, (3, 8, 8)), torch.zeros(1, 3, 8, 8))


def price(spec: StudentSpec) -> Costs:
    flops = 3000 - sum(1000 - int(1000 * width) for width in spec.widths.values())
    return Costs(params=flops, flops=flops, latency_ms=flops / 1e3)


class Session:
    """A searcher with its record, as the runner puts them together."""

    def __init__(self, folder: Path, blocks: tuple[Block, ...], resume: bool = False, **options: Any) -> None:
        budget = {"trials": 12, "epochs": 3, **options.pop("budget", {})}
        experiment = Experiment.model_validate(
            {
                "name": "toy",
                "objectives": list(DIRECTIONS),
                "budget": budget,
                "space": {"widths": [0.25, 0.5]},
            }
        )
        url = f"sqlite:///{folder}/study.db"
        if resume:
            self.record = StudyRecord.load(url, "toy")
            self.record.interrupt()
        else:
            self.record = StudyRecord.create(url, "toy", list(DIRECTIONS.values()))
        self.verdicts = Verdicts()
        self.boards: list[dict[int, str]] = []
        self.searcher = StudySearcher(
            experiment,
            self.record,
            Proposer(
                experiment,
                SearchSpace(experiment, tuple(b.name for b in blocks)),
                price,
                options.pop("limits", []),
                self.record.trials(),
            ),
            blocks,
            verdicts=self.verdicts,
            watch=lambda board: self.boards.append(dict(board.states)),
            **options,
        )

    def start(self, trial_id: str) -> dict[str, Any]:
        config = self.searcher.suggest(trial_id)
        assert isinstance(config, dict)
        return config

    def train(self, trial_id: str, epoch: int, end: bool = False, **metrics: float) -> None:
        """An epoch as Ray reports it: the last result of a trial comes with its completion alone."""
        names = ("val_accuracy", "val_loss", "train_loss", "loss/ce", "entropy")
        values = {**dict.fromkeys(names, 0.5), "epoch": epoch, "seconds": 1.0, **metrics}
        result = {**values, "recorded": list(values), "further": ["loss/ce", "entropy"]}
        if end:
            self.searcher.on_trial_complete(trial_id, result)
        else:
            self.searcher.on_trial_result(trial_id, result)

    def finish(self, trial_id: str, **metrics: float) -> int:
        number = self.start(trial_id)["number"]
        self.train(trial_id, 3, end=True, **metrics)
        return int(number)

    def row(self, number: int) -> FrozenTrial:
        return self.record.trials()[number]


Make = Callable[..., Session]


@pytest.fixture
def make(tmp_path: Path, blocks: tuple[Block, ...]) -> Make:
    return lambda **options: Session(tmp_path, blocks, **options)


def ray_trial(folder: Path, trial_id: str = "t", error: str | None = None, failures: int = 1) -> Any:
    """As much of Ray's trial as its callbacks read."""
    file = folder / "error.txt"
    if error is not None:
        file.write_text(error)
    metadata = SimpleNamespace(num_failures=failures)
    return SimpleNamespace(trial_id=trial_id, error_file=error and str(file), run_metadata=metadata)


def test_a_suggestion_is_a_config_and_a_row(make: Make) -> None:
    session = make()
    config = session.start("abc")
    row = session.row(config["number"])
    distill = DistillConfig.model_validate_json(config["distill"])
    assert row.state == TrialState.RUNNING
    assert row.user_attrs["config"] == distill.model_dump(mode="json") and config["resume"] == []
    assert row.user_attrs["costs"] == price(distill.student).as_dict()
    assert row.user_attrs["ray_id"] == "abc" and row.user_attrs["seed"] == 0
    replaced = {name for span in row.user_attrs["replaced"] for name in span["span"]}
    assert replaced == set(distill.student.widths)
    assert session.boards == [{config["number"]: "RUNNING"}]


def test_a_trial_of_full_length_is_complete(make: Make) -> None:
    session = make()
    number = session.start("a")["number"]
    session.train("a", 1)
    session.train("a", 2)
    session.train("a", 3, end=True, val_accuracy=0.9)
    row = session.row(number)
    assert (row.state, row.values) == (TrialState.COMPLETE, [0.9, row.user_attrs["costs"]["flops"]])
    assert row.user_attrs["curve"]["epoch"] == [1, 2, 3] and row.user_attrs["epochs"] == 3
    assert session.searcher.board.values == {number: tuple(row.values)}


def test_a_trial_behind_at_a_rung_is_pruned(make: Make) -> None:
    session = make()
    number = session.start("a")["number"]
    session.verdicts.stopped.add(number)
    session.train("a", 1, end=True, val_accuracy=0.2)
    row = session.row(number)
    assert (row.state, row.values) == (TrialState.PRUNED, None)
    assert row.user_attrs["metrics"]["val_accuracy"] == 0.2 and "rung of epoch 1" in row.user_attrs["reason"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_a_failure(make: Make, value: float) -> None:
    session = make()
    number = session.finish("a", val_accuracy=value)
    assert session.row(number).state == TrialState.FAIL
    assert "not finite" in session.row(number).user_attrs["reason"]


def test_a_diverged_trial_fails_with_its_reason(make: Make) -> None:
    session = make()
    number = session.start("a")["number"]
    session.searcher.on_trial_complete("a", {"number": number, "failure": "epoch 1: not finite: ce"})
    assert session.row(number).state == TrialState.FAIL
    assert session.row(number).user_attrs["reason"] == "epoch 1: not finite: ce"


def test_a_crashed_trial_fails_with_the_cause_that_the_callback_knows(make: Make, tmp_path: Path) -> None:
    session = make()
    callback = StudyCallback(session.searcher, str(tmp_path))
    number = session.start("a")["number"]
    session.searcher.on_trial_complete("a", error=True)
    assert session.row(number).state == TrialState.RUNNING
    text = "Failure # 1\nold\nFailure # 2\nTraceback ...\nValueError: postgresql://me:hunter2@db is away\n"
    callback.on_trial_error(0, [], ray_trial(tmp_path, "a", text))
    assert session.row(number).user_attrs["reason"] == "ValueError: postgresql://me:***@db is away"
    assert cause(ray_trial(tmp_path)) == "the trial's process ended without saying why"


def test_a_retried_trial_that_succeeds_is_complete(make: Make, tmp_path: Path) -> None:
    session = make()
    callback = StudyCallback(session.searcher, str(tmp_path))
    number = session.start("a")["number"]
    session.train("a", 1)
    callback.on_trial_recover(0, [], ray_trial(tmp_path, "a", "Failure # 1\nkilled\n"))
    for epoch in (1, 2):
        session.train("a", epoch)
    session.train("a", 3, end=True)
    row = session.row(number)
    assert row.state == TrialState.COMPLETE and row.user_attrs["curve"]["epoch"] == [1, 2, 3]
    assert (row.user_attrs["retries"], row.user_attrs["retry_reason"]) == (1, "killed")


def test_a_lost_node_is_no_failure_of_the_trial_until_it_loses_many(make: Make, tmp_path: Path) -> None:
    session = make()
    callback = StudyCallback(session.searcher, str(tmp_path))
    number = session.start("a")["number"]
    text = "Failure # 1\nThe actor died because its node has died. Node Id: 8f2\nthe node was lost\n"
    counted = []
    for _ in range(NODE_LOSSES + 1):
        trial = ray_trial(tmp_path, "a", text)
        callback.on_trial_recover(0, [], trial)
        counted.append(trial.run_metadata.num_failures)
    assert counted == [0] * NODE_LOSSES + [1]
    assert session.row(number).user_attrs["retries"] == NODE_LOSSES + 1


def test_a_full_disk_halts_the_search_and_fails_nobody(make: Make, tmp_path: Path) -> None:
    session = make()
    callback = StudyCallback(session.searcher, str(tmp_path))
    first, second = session.start("a")["number"], session.start("b")["number"]
    text = "Failure # 1\nTraceback ...\nOSError: [Errno 28] No space left on device: '/run/x.pt'\n"
    trial = ray_trial(tmp_path, "a", text)
    callback.on_trial_recover(0, [], trial)
    assert trial.run_metadata.num_failures == 0
    callback.on_trial_error(0, [], ray_trial(tmp_path, "b", text))
    assert "the disk is full (trial 1: OSError: [Errno 28] No space" in str(session.searcher.halted)
    assert session.searcher.suggest("c") == Searcher.FINISHED
    assert session.record.interrupt() == [first, second]
    assert not session.searcher.hopeless


def test_a_trial_that_lost_its_checkpoints_says_so(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    session = make(budget={"epochs": 9})
    number = session.start("a")["number"]
    for epoch in (1, 2, 3, 3, 4):  # an epoch again is what an interruption costs
        session.train("a", epoch)
    assert caplog.text == "" and "epochs_lost" not in session.row(number).user_attrs
    session.train("a", 2)
    assert "trial 0 continues from epoch 1 and trains 3 epoch(s) again" in caplog.text
    session.train("a", 1)
    assert "trial 0 starts from scratch and trains 2 epoch(s) again" in caplog.text
    assert session.row(number).user_attrs["epochs_lost"] == 5
    assert session.row(number).user_attrs["curve"]["epoch"] == [1]


def test_a_failure_after_its_end_does_not_change_a_row(make: Make) -> None:
    session = make()
    number = session.finish("a")
    session.searcher.fail("a", "the actor died while it was put away")
    assert session.row(number).state == TrialState.COMPLETE
    assert session.searcher.board.counts() == {"COMPLETE": 1}


def test_a_stopped_search_leaves_its_rows_to_be_resumed(make: Make) -> None:
    session = make()
    before, during = session.start("a")["number"], session.start("b")["number"]
    session.train("b", 2)
    session.searcher.on_trial_complete("a")  # what Ray says of a trial that was pending
    session.train("b", 2, end=True)  # and of one that ran
    assert session.record.interrupt() == [before, during]


def test_the_newest_checkpoint_is_noted_relative_to_the_run(make: Make, tmp_path: Path) -> None:
    session = make()
    callback = StudyCallback(session.searcher, str(tmp_path))
    number = session.start("a")["number"]
    for index in (0, 1):
        checkpoint = SimpleNamespace(path=f"{tmp_path}/trials/00000-1/checkpoint_{index}")
        callback.on_checkpoint(0, [], ray_trial(tmp_path, "a"), checkpoint)  # type: ignore[arg-type]
    assert session.row(number).user_attrs["checkpoint"] == "trials/00000-1/checkpoint_1"


def test_a_resumed_session_takes_up_interrupted_rows_first(make: Make) -> None:
    first = make()
    done = first.finish("a")
    open_rows = [first.start(name)["number"] for name in "bc"]
    first.train("b", 1)
    first.searcher.retried("b", "killed")
    second = make(resume=True, checkpoints={open_rows[1]: [], open_rows[0]: ["/x/2", "/x/1"]})
    assert second.searcher.board.states == {done: "COMPLETE"}
    taken_up = second.start("d")
    assert (taken_up["number"], taken_up["resume"]) == (open_rows[0], ["/x/2", "/x/1"])
    assert json.loads(taken_up["distill"]) == second.row(open_rows[0]).user_attrs["config"]
    second.searcher.retried("d", "killed again")
    assert second.row(open_rows[0]).user_attrs["retries"] == 2
    assert second.row(open_rows[0]).user_attrs["ray_id"] == "d"
    assert second.start("e")["number"] == open_rows[1]
    assert second.start("f")["number"] not in {done, *open_rows}


def test_the_budget_counts_trials_that_ran(make: Make) -> None:
    limits = [Limit("flops", "<=", 1300.0, "flops <= 1300")]
    session = make(budget={"trials": 4}, limits=limits)
    for name in "abcd":
        session.finish(name)
    assert session.searcher.board.refused == len(session.record.trials()) - 4 > 0
    assert session.searcher.suggest("e") == Searcher.FINISHED
    again = make(resume=True, budget={"trials": 5}, limits=limits)
    assert again.searcher.board.refused == session.searcher.board.refused
    again.finish("e")
    assert again.searcher.suggest("f") == Searcher.FINISHED


def test_nothing_starts_after_the_deadline(make: Make) -> None:
    session = make(deadline=time.monotonic() - 1, checkpoints={0: []})
    assert session.searcher.suggest("a") == Searcher.FINISHED
    assert session.record.trials() == []


def test_an_exhausted_space_ends_the_search(make: Make) -> None:
    session = make(limits=[Limit("flops", "<=", 1.0, "flops <= 1")])
    assert session.searcher.suggest("a") == Searcher.FINISHED
    assert "within the limits (flops <= 1)" in str(session.searcher.exhausted)
    assert not session.searcher.hopeless


def test_a_search_whose_trials_fail_ends_with_the_common_reason(make: Make) -> None:
    session = make(budget={"trials": 50})
    names = iter(range(50))

    def fail(reason: str) -> None:
        name = str(next(names))
        session.start(name)
        session.searcher.fail(name, reason)

    for step in range(3):
        session.finish(str(next(names)))
        fail(f"not finite at step {step}")
    fail("the disk is full")
    assert not session.searcher.hopeless, "4 of 7 is most, but too few to tell"
    fail("not finite at step 3")
    assert session.searcher.hopeless
    assert session.searcher.exhausted == "5 of 8 trials failed, most with: not finite at step 3"
    assert session.searcher.suggest("z") == Searcher.FINISHED


def test_a_search_goes_on_beside_a_few_bad_configs(make: Make) -> None:
    session = make(budget={"trials": 50})
    for index in range(6):
        session.finish(f"good {index}")
        session.start(f"bad {index}")
        session.searcher.fail(f"bad {index}", "broke")
    assert not session.searcher.hopeless


def test_a_small_budget_is_hopeless_when_all_of_it_failed(make: Make) -> None:
    session = make(budget={"trials": 2})
    for name in "ab":
        session.start(name)
        session.searcher.fail(name, "broke")
    assert session.searcher.hopeless


def test_failures_of_an_earlier_session_are_forgiven(make: Make) -> None:
    session = make()
    for name in "abcd":
        session.start(name)
        session.searcher.fail(name, "no driver")
    again = make(resume=True)
    again.start("e")
    again.searcher.fail("e", "bad luck")
    assert not again.searcher.hopeless and again.searcher.board.counts()["FAIL"] == 5


def test_nothing_of_the_search_is_pickled(make: Make, tmp_path: Path) -> None:
    session = make()
    session.finish("a")
    text = pickle.dumps(session.searcher) + pickle.dumps(StudyCallback(session.searcher, str(tmp_path)))
    assert b"sqlite" not in text and b"level/" not in text and len(text) < 500
    session.searcher.save(str(tmp_path / "state"))
    session.searcher.restore(str(tmp_path / "state"))
    assert not (tmp_path / "state").exists()


def test_a_board_counts_by_state() -> None:
    board = Board(trials=4, epochs=3, directions=["maximize"])
    for number, state in enumerate(("COMPLETE", "FAIL", "COMPLETE")):
        board.change(number, state)
    assert board.counts() == {"COMPLETE": 2, "FAIL": 1}
