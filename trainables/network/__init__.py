"""Tools for any `nn.Module`: trace, cut, read, count, fold, reset, evaluate."""
