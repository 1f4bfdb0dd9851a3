"""Single-device mathematics, in which parallelism appears only as names."""
