"""What to try next and where it runs: experiment file, search space, searcher, the `ama` command."""
