"""Benchmarks: every measured claim is the output of one command."""

from pathlib import Path

RESULTS = Path(__file__).parent / "results"
TABLES = Path(__file__).parent / "tables"
