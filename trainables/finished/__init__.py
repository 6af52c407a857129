"""Finished models: retrain, save, load, export."""
