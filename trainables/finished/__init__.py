"""Finished models: retrain, write, load, export."""
