"""The measured claims, each a command."""

from pathlib import Path

RESULTS = Path(__file__).parent / "results"
TABLES = Path(__file__).parent / "tables"
