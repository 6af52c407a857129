"""The run directory: file names, lock, copies to and from object stores."""
