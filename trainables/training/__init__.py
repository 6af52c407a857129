"""The training loop; it knows methods by their interface alone."""
