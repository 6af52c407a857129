"""Run a search, retrain its picks, evaluate and export finished models."""
