"""Pre-training and fine-tuning of language models over many devices."""

__version__ = "0.1.0"
