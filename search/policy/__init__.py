"""What to try next: space, samplers, first trials, early stopping. No Ray."""
