import json
from types import SimpleNamespace

import pytest
from optuna.trial import TrialState, create_trial
from ray import tune
from ray.tune.schedulers import TrialScheduler

from search.tune.scheduler import RungScheduler
from search.tune.verdicts import Verdicts
from trainables.errors import InputError

DIRECTIONS = {"val_accuracy": "maximize", "latency_ms": "minimize"}
EPOCHS = 4


def scheduler(verdicts=None, directions=DIRECTIONS):
    verdicts = Verdicts() if verdicts is None else verdicts
    return RungScheduler(directions, max_epochs=EPOCHS, grace_epochs=1, reduction_factor=2, verdicts=verdicts)


def tell(rungs, number, accuracy, latency=1.0, epoch=1, **more):
    result = {"number": number, "val_accuracy": accuracy, "latency_ms": latency, "training_iteration": epoch}
    return rungs.on_trial_result(None, SimpleNamespace(config={}), result | more)


class Curve(tune.Trainable):
    """A learning curve without any learning: accuracy is `final` from the start."""

    def setup(self, config):
        self._start(config)

    def _start(self, config):
        self.number, self.final, self.done_epochs = config["number"], config["final"], 0

    def reset_config(self, new_config):
        self._start(new_config)
        return True

    def step(self):
        self.done_epochs += 1
        return {
            "number": self.number,
            "epoch": self.done_epochs,
            "val_accuracy": self.final,
            "done": self.done_epochs == EPOCHS,
        }

    def save_checkpoint(self, checkpoint_dir):
        return None

    def load_checkpoint(self, checkpoint):
        return None


def test_real_run_stops_who_is_behind_and_nobody_else(local_ray, tmp_path):
    # One at a time, best first: every later trial is dominated by all before it.
    finals = [0.9, 0.8, 0.7, 0.6, 0.5]
    costs = {number: {"latency_ms": 1.0 + number} for number in range(5)}
    costs[4] = {"latency_ms": 0.5}  # the least accurate, but the cheapest
    verdicts = Verdicts(costs)
    rungs = scheduler(verdicts)
    space = {
        "number": tune.grid_search(list(range(5))),
        "final": tune.sample_from(lambda spec: finals[spec.config.number]),
    }
    config = tune.TuneConfig(scheduler=rungs, max_concurrent_trials=1, reuse_actors=True)
    run = tune.RunConfig(storage_path=str(tmp_path), name="run", verbose=0)
    results = tune.Tuner(Curve, param_space=space, tune_config=config, run_config=run).fit()
    epochs = {result.metrics["number"]: result.metrics["epoch"] for result in results}
    assert epochs == {0: 4, 1: 1, 2: 1, 3: 1, 4: 4}
    assert verdicts.stopped == {1, 2, 3} and not verdicts.diverged
    assert {epoch: set(seen) for epoch, seen in rungs.rule.rungs.items()} == {1: {0, 1, 2, 3, 4}, 2: {0, 4}}


def test_directions_turn_the_objectives():
    rungs = scheduler(directions={"val_loss": "minimize", "val_accuracy": "maximize"})
    assert tell(rungs, 0, 0.9, val_loss=0.1) == TrialScheduler.CONTINUE
    assert tell(rungs, 1, 0.5, val_loss=0.5) == TrialScheduler.STOP
    assert tell(rungs, 2, 0.95, val_loss=0.6) == TrialScheduler.CONTINUE
    assert rungs.rule.rungs[1][2] == (1, (0.6, -0.95))


def test_spread_is_along_the_costs():
    assert scheduler().rule.costs == (1,)
    assert scheduler(
        directions={"flops": "minimize", "val_loss": "minimize", "params": "minimize"}
    ).rule.costs == (
        0,
        2,
    )


def test_epoch_of_the_trial_counts_not_rays_iteration_after_a_resume():
    rungs = scheduler()
    result = {"number": 0, "val_accuracy": 0.9, "latency_ms": 1.0, "epoch": 3, "training_iteration": 1}
    rungs.on_trial_result(None, SimpleNamespace(config={}), result)
    assert rungs.rule.rungs == {1: {}, 2: {0: (3, (-0.9, 1.0))}}


def test_number_may_come_from_the_config_and_costs_from_outside():
    verdicts = Verdicts()
    rungs = scheduler(verdicts)
    verdicts.costs[7] = {"latency_ms": 2.0}  # known only once the trial was suggested
    trial = SimpleNamespace(config={"number": 7})
    result = {"val_accuracy": 0.5, "training_iteration": 1}
    assert rungs.on_trial_result(None, trial, result) == TrialScheduler.CONTINUE
    assert rungs.rule.rungs[1] == {7: (1, (-0.5, 2.0))}


def test_a_result_that_misses_something_is_logged_once_and_goes_on(caplog):
    rungs = scheduler()
    tell(rungs, 0, 0.9)
    for _ in range(2):
        assert tell(rungs, 1, 0.1, latency=None) == TrialScheduler.CONTINUE
        assert tell(rungs, None, 0.1) == TrialScheduler.CONTINUE
        assert rungs.on_trial_result(None, SimpleNamespace(config={}), {}) == TrialScheduler.CONTINUE
    assert [record.args for record in caplog.records] == [("latency_ms",), ("number",)]
    assert set(rungs.rule.rungs[1]) == {0}


def test_values_that_are_not_finite_stop_but_are_not_called_early_stopping():
    verdicts = Verdicts()
    rungs = scheduler(verdicts)
    assert tell(rungs, 0, float("nan")) == TrialScheduler.STOP
    assert verdicts.diverged == {0} and not verdicts.stopped and not rungs.rule.rungs[1]


def test_rungs_come_back_from_the_study():
    verdicts = Verdicts()
    live = scheduler(verdicts)
    rows = []
    for number, (accuracy, latency) in enumerate([(0.9, 2.0), (0.5, 3.0), (0.6, 1.0), (0.7, 2.5)]):
        epochs = []
        for epoch in range(1, EPOCHS):
            epochs.append(epoch)
            if tell(live, number, accuracy + epoch / 100, latency, epoch) == TrialScheduler.STOP:
                break
        curve = {"epoch": epochs, "val_accuracy": [accuracy + e / 100 for e in epochs]}
        attrs = {"curve": curve, "costs": {"latency_ms": latency, "flops": 1}}
        rows.append(create_trial(state=TrialState.RUNNING, user_attrs=json.loads(json.dumps(attrs))))
        rows[-1].number = number
    refused = create_trial(state=TrialState.PRUNED, user_attrs={"refused": "duplicate"})
    back = scheduler()
    back.replay([refused, *reversed(rows)])
    assert back.rule.rungs == live.rule.rungs and len(live.rule.rungs[1]) == 4
    assert verdicts.stopped == {1, 3}
    assert tell(back, 9, 0.1, 5.0) == TrialScheduler.STOP
    assert back.debug_string() == "RungScheduler (1 stopped): epoch 1: 5 trials, epoch 2: 2 trials"


def test_numbers_outside_their_range_are_named():
    with pytest.raises(InputError, match="reduction_factor"):
        RungScheduler(DIRECTIONS, max_epochs=4, grace_epochs=1, reduction_factor=1, verdicts=Verdicts())
