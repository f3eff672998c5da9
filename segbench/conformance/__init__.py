"""The conformance suite, ``segbench test``: checks that a plug-in satisfies the contract.

A check returns nothing, and raises ``AssertionError`` with what it found.
"""

from segbench.conformance.backbones import backbone_trials as backbone_trials
from segbench.conformance.datasets import dataset_trials as dataset_trials
from segbench.conformance.methods import CHECKS as CHECKS
from segbench.conformance.methods import SETTINGS as SETTINGS
from segbench.conformance.methods import STEPS as STEPS
from segbench.conformance.methods import Drill as Drill
from segbench.conformance.methods import Trial as Trial
from segbench.conformance.methods import trials as trials
