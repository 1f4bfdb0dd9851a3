"""What every device holds of an experiment, shown without allocating anything."""

from jaxpar.look.show import show

__all__ = ["show"]
