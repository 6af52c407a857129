"""The command `ama`."""
