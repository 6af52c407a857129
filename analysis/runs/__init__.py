"""Read a run: its study, its trials, its status."""
