"""Pictures of an experiment, allocating nothing."""

from jaxpar.look.show import show

__all__ = ["show"]
