"""A stack of layers as a pipeline over stages, and the order in which it is stored."""
