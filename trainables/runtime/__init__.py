"""Device, precision, seeds, timing and memory of this machine."""
