"""Images: sources, splits, decoding, caches, augmentation, streaming."""
