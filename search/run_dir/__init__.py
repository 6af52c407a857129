"""The run directory: files, lock, copies to and from object stores."""
