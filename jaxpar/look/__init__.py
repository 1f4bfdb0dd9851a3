"""What an experiment is, shown without allocating anything."""

from jaxpar.look.show import show

__all__ = ["show"]
