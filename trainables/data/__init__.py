"""Image data: sources, splits, decoding, caches, augmentation, streaming."""
