"""Ray Tune searcher: pass proposals to Ray Tune, and record results and states of trials in the study.

Ray's `OptunaSearch` reports early-stopped trials as COMPLETE, leaves rows RUNNING after a stopper or a time
limit, and pickles the storage URL into the run directory. This searcher avoids all three.
"""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from analysis.runs.study_url import redact
from search.experiment.experiment import Experiment
from search.policy.proposer import Proposal, Proposer, SpaceExhaustedError
from search.study.record import StudyRecord, is_within, ran
from search.tune.board import Board
from search.tune.verdicts import Verdicts
from trainables.blocks.blocks import Block
from trainables.student.spans import spans_of

# The search ends after this many failed trials if they are the majority of the session's ended trials: then
# the configs are not the cause.
HOPELESS = 5
# Node losses per trial that do not count as failures; a trial with more losses may be their cause.
NODE_LOSSES = 10
# Seconds to wait for the database when the search ends because the disk is full: it may be on that disk.
LAST_PATIENCE = 10.0

_DISK_FULL = re.compile(r"no space left on device|disk quota exceeded|errno (28|122)\b", re.IGNORECASE)

log = logging.getLogger(__name__)


class StudySearcher(Searcher):  # type: ignore[misc]
    """Searcher of Ray Tune: propose trials and write their rows.

    Args:
        experiment: gives objectives, budget and seed.
        record: the study's rows.
        proposer: proposes new trials.
        blocks: the teacher's blocks.
        verdicts: gives the trials that the RungScheduler stopped; receives the costs of every trial.
        checkpoints: checkpoint folders, newest first, by number of the unfinished rows of earlier sessions.
            These rows are resumed before anything new is proposed.
        deadline: value of `time.monotonic()` after which no trial starts; None: no limit.
        watch: called with the board whenever it changes.

    Attributes:
        board: the live state.
        exhausted: the reason if the search ended before all trials were used, else None.
        hopeless: True if it ended because too many trials failed.
        halted: the reason if it cannot continue now, else None; its unfinished rows can be resumed.
    """

    def __init__(
        self,
        experiment: Experiment,
        record: StudyRecord,
        proposer: Proposer,
        blocks: Sequence[Block],
        *,
        verdicts: Verdicts,
        checkpoints: Mapping[int, Sequence[str]] | None = None,
        deadline: float | None = None,
        watch: Callable[[Board], None] | None = None,
    ) -> None:
        super().__init__()
        self._experiment = experiment
        self._record = record
        self._proposer = proposer
        self._blocks = blocks
        self._verdicts = verdicts
        self._resumable = dict(checkpoints or {})
        self._deadline = deadline
        self._watch = watch
        self._numbers: dict[str, int] = {}
        self._last: dict[int, dict[str, Any]] = {}
        self._reached: dict[int, int] = {}  # epochs by trial number, in this session
        self._retries: Counter[int] = Counter()  # retries by trial number, in all sessions
        self._node_losses: Counter[int] = Counter()
        self._lost: Counter[int] = Counter()  # epochs lost to damaged checkpoints, by trial number
        self._ended: Counter[str] = Counter()  # this session's trials by state
        self._reasons: list[str] = []
        self.exhausted: str | None = None
        self.hopeless = False
        self.halted: str | None = None
        directions = [objective.direction for objective in experiment.objectives]
        self.board = Board(experiment.budget.trials, experiment.budget.epochs, directions)
        for row in record.trials():
            self._recall(row)

    def _recall(self, row: FrozenTrial) -> None:
        if not ran(row):
            self.board.refused += 1
        elif row.number not in self._resumable:
            self.board.reached(row.number, row.user_attrs.get("epochs", 0))
            self.board.change(row.number, row.state.name)
            if row.state == TrialState.COMPLETE:
                self.board.complete(row.number, row.values, is_within(row))

    def __getstate__(self) -> dict[str, Any]:
        # Ray pickles the searcher into the run directory. Store nothing: the study has all rows, and its URL
        # is secret.
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next trial's config, or FINISHED if all trials are used or the space is exhausted."""
        if self._over():
            return str(Searcher.FINISHED)
        if self._resumable:
            return self._take_up(trial_id)
        try:
            number, proposal = self._next()
        except SpaceExhaustedError as reason:
            self.exhausted = str(reason)
            return str(Searcher.FINISHED)
        self._register(trial_id, number, proposal.costs.as_dict())
        return self._config(number, proposal.config.model_dump_json())

    def _over(self) -> bool:
        late = self._deadline is not None and time.monotonic() > self._deadline
        used = not self._resumable and len(self.board.states) >= self._experiment.budget.trials
        return late or used or self.exhausted is not None or self.halted is not None

    def _take_up(self, trial_id: str) -> dict[str, Any]:
        number = min(self._resumable)
        checkpoints = self._resumable.pop(number)
        row = self._record.trial(number)
        self._retries[number] = row.user_attrs.get("retries", 0)
        self._lost[number] = row.user_attrs.get("epochs_lost", 0)
        self._reached[number] = row.user_attrs.get("epochs", 0)
        self._record.resume(number)
        self._register(trial_id, number, row.user_attrs["costs"])
        # Report the row's last epoch again: the row does not say whether the trial passed its rung.
        told = max(0, self._reached[number] - 1)
        return self._config(number, json.dumps(row.user_attrs["config"]), checkpoints, told)

    @staticmethod
    def _config(number: int, distill: str, checkpoints: Sequence[str] = (), told: int = 0) -> dict[str, Any]:
        # As JSON, because Ray would flatten the nested dictionary, whose keys are block names.
        return {"number": number, "distill": distill, "resume": list(checkpoints), "told": told}

    def _register(self, trial_id: str, number: int, costs: Mapping[str, float]) -> None:
        self._numbers[trial_id] = number
        self._verdicts.costs[number] = dict(costs)
        self._record.annotate(number, ray_id=trial_id)
        self._changed(number, "RUNNING")

    def _changed(self, number: int, state: str) -> None:
        self.board.change(number, state)
        if self._watch is not None:
            self._watch(self.board)

    def _next(self) -> tuple[int, Proposal]:
        for proposal in self._proposer.propose(seed=self._experiment.seed):
            number = self._record.add(
                proposal.params,
                proposal.distributions,
                self._attrs(proposal),
                refused=proposal.refused,
                constraints=proposal.violations,
            )
            if proposal.refused is None:
                self._proposer.accepted(number)
                return number, proposal
            self.board.refused += 1
        raise AssertionError("propose() must end with an accepted proposal or raise")

    def _attrs(self, proposal: Proposal) -> dict[str, Any]:
        return {
            "config": proposal.config.model_dump(mode="json"),
            "costs": proposal.costs.as_dict(),
            "replaced": [
                {"span": list(span.blocks), "width": span.width}
                for span in spans_of(self._blocks, proposal.config.student)
            ],
            "seed": proposal.config.seed,
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Write the metrics of a trained epoch to the row."""
        number = self._numbers[trial_id]
        metrics = {name: result[name] for name in result["recorded"]}
        self._last[number] = metrics
        if not result.get("again"):
            self._compare(number, metrics["epoch"])
        self._record.epoch(number, metrics, result["further"])
        self._proposer.reported(number, metrics["epoch"], self._values(number, metrics))
        self.board.reached(number, metrics["epoch"])
        self._changed(number, "RUNNING")

    def _compare(self, number: int, epoch: int) -> None:
        """Log a warning if a trial repeats more than the one epoch that an interruption costs."""
        lost = self._reached.get(number, 0) - (epoch - 1)
        self._reached[number] = epoch
        if lost > 1 or (lost == 1 and epoch == 1):
            start = f"continues from epoch {epoch - 1}" if epoch > 1 else "starts from scratch"
            log.warning(
                "trial %d %s and trains %d epoch(s) again: no later checkpoint could be read",
                number,
                start,
                lost,
            )
            self._lost[number] += lost
            self._record.annotate(number, epochs_lost=self._lost[number])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Set the final state of the row of a trial that ended."""
        if error:
            return  # Ray calls `search.tune.callback` next, with the cause
        number = self._numbers[trial_id]
        if result and "failure" in result:
            self.fail(trial_id, result["failure"])
            return
        if result and "val_accuracy" in result:
            self.on_trial_result(trial_id, result)  # Ray does not report a trial's last result separately
        if number in self._last:
            self._end(trial_id, number, self._last[number])
        # else: stopped before its first epoch was done; the row can be resumed

    def _end(self, trial_id: str, number: int, metrics: dict[str, Any]) -> None:
        values = self._values(number, metrics)
        violations = self._proposer.violations(metrics)
        if not all(math.isfinite(v) for v in values):
            self.fail(trial_id, f"objective values are not finite: {values}")
        elif metrics["epoch"] >= self._experiment.budget.epochs:
            self._record.complete(number, values, violations)
            self._proposer.completed(number, values, violations)
            self.board.complete(number, values, all(v <= 0 for v in violations.values()))
            self._count(number, "COMPLETE")
        elif number in self._verdicts.stopped:
            reason = f"early stopping: behind at the rung of epoch {metrics['epoch']}"
            self._record.prune(number, reason, violations)
            self._proposer.stopped(number, violations)
            self._count(number, "PRUNED")
        # else: the time limit was reached, or Ctrl-C was pressed; the row can be resumed

    def _values(self, number: int, metrics: Mapping[str, Any]) -> list[float]:
        """Return the objective values, in the objectives' order."""
        known = {**metrics, **self._verdicts.costs[number]}
        return [float(known[objective.metric]) for objective in self._experiment.objectives]

    def fail(self, trial_id: str, reason: str) -> None:
        """Set a trial's row to FAIL, except if it has ended already, or if the disk is full (it waits)."""
        number = self._numbers[trial_id]
        if self.board.states[number] != "RUNNING" or self._halts(number, reason):
            return
        log.warning("trial %d failed: %s", number, redact(reason))
        self._record.fail(number, reason)
        self._proposer.ended(number, TrialState.FAIL)
        self._reasons.append(redact(reason))
        self._count(number, "FAIL")
        failed, ended = self._ended["FAIL"], self._ended.total()
        if failed >= min(HOPELESS, self._experiment.budget.trials) and failed > ended / 2:
            self.exhausted = f"{failed} of {ended} trials failed, most with: {_most_common(self._reasons)}"
            self.hopeless = True

    def _count(self, number: int, state: str) -> None:
        self._ended[state] += 1
        self._changed(number, state)

    def _halts(self, number: int, reason: str) -> bool:
        """Halt the search if a trial failed because the disk is full; return True if so."""
        if not _DISK_FULL.search(reason):
            return False
        what = f"the disk is full (trial {number}: {redact(reason)})"
        self.halted = f"{what}; free some space, then continue with --resume"
        self._record.waiting.patience = min(self._record.waiting.patience, LAST_PATIENCE)
        return True

    def retried(self, trial_id: str, reason: str, node_lost: bool = False) -> bool:
        """Note in the row that the trial failed and continues from its last checkpoint.

        Args:
            trial_id: Ray's id of the trial.
            reason: cause of the failure.
            node_lost: whether the node was lost.

        Returns:
            True if it counts as a failure of the trial.
        """
        number = self._numbers[trial_id]
        if self._halts(number, reason):
            return False
        self._retries[number] += 1
        self._node_losses[number] += node_lost
        log.warning("trial %d continues from its last checkpoint after: %s", number, redact(reason))
        self._record.annotate(number, retries=self._retries[number], retry_reason=redact(reason))
        return not node_lost or self._node_losses[number] > NODE_LOSSES

    def checkpointed(self, trial_id: str, path: str) -> None:
        """Note the newest checkpoint in the row."""
        number = self._numbers[trial_id]
        if self.board.states[number] == "RUNNING":
            self._record.annotate(number, checkpoint=path)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is the record."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study is the record."""


def _most_common(reasons: Sequence[str]) -> str:
    """Return the most frequent reason, ignoring differences in numbers; of equals, the newest."""
    kinds = [re.sub(r"[\d.]+", "#", reason) for reason in reasons]
    most = Counter(kinds).most_common(1)[0][0]
    return [reason for reason, kind in zip(reasons, kinds, strict=True) if kind == most][-1]
