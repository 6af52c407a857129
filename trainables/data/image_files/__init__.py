"""Images in files: list, decode and cache them; folders with one sub-folder per class."""
