"""A method that waits in its fifth step as long as a file exists, so that tests can disturb it."""

import os
import time
from pathlib import Path

from segbench import Method, method
from segbench.nn.losses import cross_entropy
from segbench.training.signals import stop_request

LAST = 4  # step in which a run waits


def wait():
    """Wait until the file is removed or someone asks the run to stop; another file says so."""
    gate = Path(os.environ.get("SEGBENCH_GATE", "no file"))
    with stop_request() as stop:
        while stop.code is None and gate.exists():
            gate.with_name(f"waiting-{os.getpid()}").touch()
            time.sleep(0.05)


@method("gated")
class Gated(Method):
    """Cross-entropy of the labeled images."""

    def build(self, network):
        self.network = network()

    def loss(self, batch, t):
        if t.step >= LAST:
            wait()
        return {"labeled": cross_entropy(self.network(batch.x), batch.y)}

    def predict(self, image, source=0):
        return self.network(image).softmax(1)
