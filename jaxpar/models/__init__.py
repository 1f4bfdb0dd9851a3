"""Language models, built from nn by configuration values."""
