"""Compare several runs."""
