"""Run a search, retrain its picks, read finished runs."""
