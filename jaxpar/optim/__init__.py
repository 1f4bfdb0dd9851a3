"""Optimizers: schedules, parameters chosen by path, optax chains."""
