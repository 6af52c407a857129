"""Teachers: architectures, training, weights on disk."""
