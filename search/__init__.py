"""What to try next and where it runs: the experiment file, the search space, the searcher, the `ama` command."""
