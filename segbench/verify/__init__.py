"""Run a method beside its authors' code: equal weights, equal batches, equal random draws."""

from segbench.verify.compare import ComparedValue, Verification, verify_method
from segbench.verify.description import Description, load_description

__all__ = [
    "ComparedValue",
    "Description",
    "Verification",
    "load_description",
    "verify_method",
]
