"""Looking at an experiment and a run: memory on devices, data, losses, answers."""

from jaxpar.look.show import show

__all__ = ["show"]
