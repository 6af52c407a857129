"""Read weights from the files that people have: find out the kind of file, then the weights in it."""
