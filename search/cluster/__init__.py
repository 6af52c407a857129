"""A running Ray cluster: connection, checks of its nodes, placement."""
