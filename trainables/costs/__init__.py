"""Prices of blocks and modules, known before anything is trained."""
