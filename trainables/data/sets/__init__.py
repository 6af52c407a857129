"""The data sets, one file each (or per family): how to read, augment and normalise them."""
