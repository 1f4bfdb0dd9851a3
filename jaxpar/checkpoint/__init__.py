"""Checkpoints: writing and reading training states, and adopting parameters."""
