"""The proof that a layout computes what one device does."""

from jaxpar.verify.compare import Reference
from jaxpar.verify.proof import Proof
from jaxpar.verify.prove import assert_same, verify

__all__ = ["Proof", "Reference", "assert_same", "verify"]
