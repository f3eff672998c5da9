"""Run a method beside its authors' code: equal weights, equal batches, equal random draws."""

from segbench.verify.compare import ComparedValue, Verification, verify_method
from segbench.verify.description import Description, described_methods, load_description

__all__ = [
    "ComparedValue",
    "Description",
    "Verification",
    "described_methods",
    "load_description",
    "verify_method",
]
