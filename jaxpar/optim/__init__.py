"""Optimizers: learning-rate schedules, parameters chosen by path, optax chains."""
