"""The record of trials: an Optuna study and its database."""
