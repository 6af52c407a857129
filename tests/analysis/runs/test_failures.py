from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from analysis.report.write import write_report
from analysis.runs.failures import failures, leading_reason
from analysis.runs.run import Run
from analysis.runs.status import status

Make = Callable[..., optuna.Study]
NOTHING = {"complete": 0, "pruned": 0, "failed": 0, "running": 0, "waiting": 0, "refused": 0}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"failed": 1}, "all 1 trials failed: "),
        ({"failed": 4}, "all 4 trials failed (2 of them): "),
        ({"failed": 2, "pruned": 1, "refused": 3}, "2 of 3 trials failed (1 of them): "),
        ({"failed": 4, "running": 1}, ""),
        ({"failed": 4, "waiting": 1}, ""),
        ({"failed": 4, "complete": 1}, ""),
        ({"pruned": 2}, ""),
        ({}, ""),
    ],
)
def test_a_run_that_only_failed_has_a_leading_reason(
    make_study: Make, counts: dict[str, int], expected: str
) -> None:
    run = Run.open(make_study(**{**NOTHING, **counts}))
    reason = leading_reason(run)
    assert reason.startswith(expected) and bool(reason) == bool(expected)
    if expected:
        assert reason.endswith(failures(run)["reason"].iloc[0])


def test_the_report_of_a_run_that_only_failed_leads_with_the_reason(make_study: Make, tmp_path: Path) -> None:
    study = make_study(**{**NOTHING, "failed": 4})
    study.set_user_attr("ended", "2026-03-01T13:00:00+00:00")
    run = Run.open(study)
    page = write_report(run, tmp_path).index.read_text()
    body = page[page.index("<main>") :]
    assert body.index("All 4 trials failed") < body.index("<section")
    assert '<span class="badge open">failed</span>' in body
    assert "<figure" not in body and "Lost to failures" not in body
    targets = set(re.findall(r'href="#([^"]+)"', body))
    assert targets <= set(re.findall(r'id="([^"]+)"', body))
    assert "**All 4 trials failed" in (tmp_path / "summary.md").read_text()[:200]
    found = status(run)["failures"]
    assert sum(row["trials"] for row in found) == 4 and all(row["reason"] for row in found)
