"""Text generation, and logits, with a trained model."""

from jaxpar.generate.answer import answer, generator, logits

__all__ = ["answer", "generator", "logits"]
