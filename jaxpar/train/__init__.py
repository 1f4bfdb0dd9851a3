"""Training: objective, loss, train and evaluation steps, the loop and its events."""
