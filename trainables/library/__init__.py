"""The module library: candidate modules, distilled in advance from the blocks that they replace."""
