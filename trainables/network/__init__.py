"""Tools for any `nn.Module`: trace, replace submodules, read maps, count, fold, reset, evaluate."""
