"""Why trials failed."""

from __future__ import annotations

import re

import pandas as pd

from analysis.runs.rows import describe_left_out
from analysis.runs.run import Run


def failures(run: Run) -> pd.DataFrame:
    """Group failed trials by reason, ignoring numbers in it: reason, trials, numbers, train_hours."""
    table = run.trials
    table = table[table["state"] == "FAIL"].copy()
    table["reason"] = table["reason"].replace("", "no reason recorded").str.split("\n").str[0]
    table["kind"] = [re.sub(r"\d+(\.\d+)?", "#", text) for text in table["reason"]]
    out = table.groupby("kind", sort=False).agg(
        reason=("reason", "first"),
        trials=("number", "size"),
        numbers=("number", lambda column: ", ".join(map(str, column))),
        train_hours=("seconds", "sum"),
    )
    out = out.sort_values("trials", ascending=False, kind="stable").reset_index(drop=True)
    return out.assign(train_hours=out["train_hours"] / 3600)


def leading_reason(run: Run) -> str:
    """Return why a run without any fully trained trial failed: "all 5 trials failed: loss is NaN in …".

    Returns:
        "" while trials run or wait, if a trial was fully trained, or if none failed.
    """
    states = run.trials.loc[run.trials["refused"] == "", "state"]
    if not (states == "FAIL").any() or states.isin(["COMPLETE", "RUNNING", "WAITING"]).any():
        return ""
    most = failures(run).iloc[0]
    failed = int((states == "FAIL").sum())
    who = f"all {failed}" if failed == len(states) else f"{failed} of {len(states)}"
    others = "" if most["trials"] == failed else f" ({most['trials']} of them)"
    return f"{who} trials failed{others}: {most['reason']}"


def notices(run: Run) -> list[str]:
    """Return what a reader has to know first: why all trials failed, and which rows are left out."""
    reason = leading_reason(run)
    return [*([reason] if reason else []), *describe_left_out(run.left_out)]
