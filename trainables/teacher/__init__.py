"""Teachers: architectures, training, files."""
