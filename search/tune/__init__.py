"""Ray Tune: searcher, scheduler, callbacks, checkpoints."""
