"""Training: an objective, a pure step, a loop with events."""
