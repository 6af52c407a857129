"""Boards and tables: counts, time left, the front, the cost table."""

from __future__ import annotations

from rich.console import Console, RenderableType

from analysis.metrics import duration
from search.cli.tables import count_words, draw, front_table, profile_tables, seconds_left
from search.tune.board import Board

ACCURACY_FLOPS = [("val_accuracy", "maximize"), ("flops", "minimize")]


def board(trials: int = 10, **reached: tuple[str, int]) -> Board:
    """A board of trials such as `t0=("COMPLETE", 4)`: state, and epochs done."""
    made = Board(trials, epochs=4, directions=[direction for _, direction in ACCURACY_FLOPS])
    for key, (state, epochs) in reached.items():
        made.reached(int(key.removeprefix("t")), epochs)
        made.change(int(key.removeprefix("t")), state)
    return made


def rows(drawn: RenderableType) -> list[list[str]]:
    lines = [line for line in rendered(drawn).splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def rendered(drawn: RenderableType) -> str:
    console = Console(width=120, highlight=False, color_system=None)
    with console.capture() as captured:
        console.print(drawn)
    return captured.get()


def test_duration_chooses_its_unit() -> None:
    assert [duration(s) for s in (0.25, 9.94, 12.3, 61, 3723)] == [
        "0.2 s",
        "9.9 s",
        "12 s",
        "1 min 01 s",
        "1 h 02 min",
    ]


def test_front_table_holds_the_non_dominated_trials_cheapest_first() -> None:
    values = {3: (0.9, 2.07e6), 4: (0.8, 1.08e6), 5: (0.85, 3e6), 6: (0.9, 2.07e6)}
    assert rows(front_table(values, ACCURACY_FLOPS)) == [
        ["4", "80.00 %", "1.08 M"],
        ["3", "90.00 %", "2.07 M"],
        ["6", "90.00 %", "2.07 M"],
    ]


def test_front_table_of_two_minimised_metrics() -> None:
    objectives = [("val_loss", "minimize"), ("params", "minimize")]
    assert [row[0] for row in rows(front_table({1: (0.5, 10), 2: (0.4, 20), 3: (0.5, 20)}, objectives))] == [
        "1",
        "2",
    ]


def test_counts_name_running_trials_and_refusals_only_where_there_are_some() -> None:
    assert count_words({"COMPLETE": 2}, 0) == "2 complete, 0 stopped early, 0 failed"
    words = count_words({"COMPLETE": 2, "PRUNED": 1, "FAIL": 3, "RUNNING": 4, "WAITING": 5}, 1)
    assert words == (
        "2 complete, 1 stopped early, 3 failed, 4 running, 5 waiting; 1 proposal refused before training"
    )
    assert count_words({}, 7).endswith("; 7 proposals refused before training")


def test_time_left_follows_from_the_epochs_of_ended_trials() -> None:
    state = board(t0=("COMPLETE", 4), t1=("PRUNED", 2), t2=("RUNNING", 1))
    # Ten trials of 3 epochs on average are 30; 7 are done in 14 s.
    assert seconds_left(state, elapsed=14.0) == 14.0 * 23 / 7
    # An earlier session did 5 of the 7: this one is slower.
    assert seconds_left(state, elapsed=14.0, before=5) == 14.0 * 23 / 2


def test_time_left_is_unknown_before_the_first_trial_has_ended() -> None:
    state = board(t0=("RUNNING", 3))
    assert seconds_left(state, elapsed=9.0) is None
    assert "left" not in rendered(draw(state, ACCURACY_FLOPS, 9.0))


def test_the_board_shows_counts_clock_and_front() -> None:
    state = board(t0=("COMPLETE", 4), t1=("RUNNING", 2))
    state.complete(0, (0.91, 5e5))
    state.refused = 2
    shown = rendered(draw(state, ACCURACY_FLOPS, 60.0))
    assert "1/10 trials: 1 complete, 0 stopped early, 0 failed, 1 running; 2 proposals refused" in shown
    assert "elapsed 1 min 00 s, about 5 min 40 s left" in shown
    assert rows(front_table(state.values, ACCURACY_FLOPS)) == [["0", "91.00 %", "500 k"]]


def test_a_finished_board_has_no_time_left() -> None:
    state = board(trials=1, t0=("COMPLETE", 4))
    assert "left" not in rendered(draw(state, ACCURACY_FLOPS, 60.0))


def test_cost_tables_show_the_teacher_under_its_blocks() -> None:
    costs = {"params": 4_670, "flops": 2_070_000, "latency_ms": 1.5}
    block = {"name": "layer1.0", "in_shape": [16, 8, 8], "out_shape": [32, 4, 4], **costs}
    module = {"span": ["layer1.0", "layer1.1"], "width": 0.25, **costs}
    teacher = {"params": 272_000, "flops": 5_120_000, "latency_ms": 2.25}
    blocks, modules = profile_tables({"teacher": teacher, "blocks": [block], "modules": [module]})
    assert rows(blocks) == [
        ["layer1.0", "16×8×8", "32×4×4", "4.67 k", "2.07 M", "1.50 ms"],
        ["the whole teacher", "", "", "272 k", "5.12 M", "2.25 ms"],
    ]
    assert rows(modules) == [["layer1.0 + layer1.1", "0.25", "4.67 k", "2.07 M", "1.50 ms"]]
