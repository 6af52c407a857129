"""The module library: candidate modules distilled against the blocks they replace."""
