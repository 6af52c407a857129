"""Costs of blocks and modules, known before training."""
