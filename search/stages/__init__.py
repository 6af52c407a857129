"""Stages before the first trial: teacher, costs, limits, library, resources."""
