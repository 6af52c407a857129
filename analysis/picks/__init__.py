"""Pick trials from the front and write them to a file."""
