"""Policies of the search: space, samplers, first trials, early stopping. Imports no Ray."""
