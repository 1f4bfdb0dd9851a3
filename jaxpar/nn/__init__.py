"""Layers, written as for one device: parallelism appears as names of axes."""
