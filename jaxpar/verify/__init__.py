"""The proof that a layout computes what one device does."""

from jaxpar.verify.compare import Reference
from jaxpar.verify.prove import assert_same, verify
from jaxpar.verify.report import Proof

__all__ = ["Proof", "Reference", "assert_same", "verify"]
