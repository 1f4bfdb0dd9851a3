"""The proof that a layout computes what one device does.

The package is called like a function, `jaxpar.verify(experiment, "fsdp=8")`: that is
`jaxpar.verify.prove.verify`.
"""

import sys
import types

from jaxpar.verify.compare import Reference
from jaxpar.verify.proof import Proof
from jaxpar.verify.prove import assert_same, verify

__all__ = ["Proof", "Reference", "assert_same", "verify"]


class _Callable(types.ModuleType):
    """The type of this package: Python lets a module have a type of its own."""

    __call__ = staticmethod(verify)


sys.modules[__name__].__class__ = _Callable
