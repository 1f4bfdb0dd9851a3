"""A run on disk: its directory, and training inside it."""
