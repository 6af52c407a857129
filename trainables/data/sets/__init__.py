"""One file a data set (or family): how it is read, augmented and normalised."""
