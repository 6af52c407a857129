"""What the trials say: fronts, importances, picks, plots and reports. Never imports torch or Ray."""
