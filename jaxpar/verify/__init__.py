"""The proof that a layout computes what one device does."""

from jaxpar.verify.api import assert_same, prove, verify
from jaxpar.verify.compare import Reference
from jaxpar.verify.report import Proof

__all__ = ["Proof", "Reference", "assert_same", "prove", "verify"]
