"""Checkpoints and run directories: the only thing that entry points share."""
