"""How this machine computes: device, precision, seeds, clocks, memory."""
