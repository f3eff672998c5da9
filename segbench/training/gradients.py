"""Average the gradients of several processes while the backward pass is still going on.

Gradients travel in buckets, as in DistributedDataParallel: a bucket is sent as soon as all its
gradients are computed, and the backward pass continues meanwhile. DistributedDataParallel itself
needs one module whose forward pass is the whole loss. Methods here have several players with
optimizers of their own, change in each phase what is trained, and need gradients of an image within
a loss; its wrapper would have to be made again for each of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segbench.training.distributed import World, peers_present

BUCKET = 25 * 2**20  # bytes, as in DistributedDataParallel


class Bucket:
    """Parameters whose gradients travel in one message."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.missing = len(parameters)  # gradients that are not computed yet
        self._has_all = False  # whether each parameter has a gradient in this process
        self._message: Tensor | None = None
        self._work: dist.Work | None = None

    def send(self) -> None:
        """Start to add up the gradients of all processes. A missing gradient counts as zero."""
        count = len(self.parameters)
        size = sum(parameter.numel() for parameter in self.parameters)
        flags = [parameter.grad is not None for parameter in self.parameters]
        self._has_all = all(flags)
        self._message = self.parameters[0].new_empty(count + size)
        self._message[:count] = torch.tensor(flags, dtype=self._message.dtype)
        for parameter, place in zip(self.parameters, self._places(self._message), strict=True):
            if parameter.grad is None:
                place.zero_()
            else:
                place.copy_(parameter.grad)
        with peers_present():
            self._work = dist.all_reduce(self._message, async_op=True)

    def receive(self, processes: int) -> None:
        """Wait for the sums and put the means in place of the gradients.

        A parameter gets none if no process has one.
        """
        assert self._message is not None
        assert self._work is not None
        with peers_present():
            self._work.wait()
        count = len(self.parameters)
        exists_anywhere = [1.0] * count
        if not self._has_all:  # reading the flags waits for the device
            exists_anywhere = self._message[:count].tolist()
        self._message[count:] /= processes
        places = self._places(self._message)
        for parameter, exists, mean in zip(self.parameters, exists_anywhere, places, strict=True):
            parameter.grad = mean if exists else None

    def _places(self, message: Tensor) -> list[Tensor]:
        """Return the part of the message of each parameter, in the parameter's memory format."""
        places = []
        start = len(self.parameters)
        for parameter in self.parameters:
            end = start + parameter.numel()
            if _is_dense(parameter):
                places.append(message.as_strided(parameter.size(), parameter.stride(), start))
            else:
                places.append(message[start:end].view_as(parameter))
            start = end
        return places


def _is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor's numbers lie side by side in memory, in whatever order."""
    last = sum((size - 1) * step for size, step in zip(tensor.size(), tensor.stride(), strict=True))
    return last + 1 == tensor.numel()


def buckets_of(parameters: Iterable[nn.Parameter], most: int = BUCKET) -> list[Bucket]:
    """Return buckets of parameters in the order in which gradients usually arrive, the last first.

    Args:
        most: bytes of a bucket.
    """
    buckets = []
    group: list[nn.Parameter] = []
    size = 0
    for parameter in reversed(list(parameters)):
        bytes_of_gradient = parameter.numel() * parameter.element_size()
        if group and size + bytes_of_gradient > most:
            buckets.append(Bucket(group))
            group = []
            size = 0
        group.append(parameter)
        size += bytes_of_gradient
    if group:
        buckets.append(Bucket(group))
    return buckets


class _Sender:
    """Sends buckets in their order, which must be the same in all processes."""

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        self.buckets = buckets
        self.sent = 0
        self._bucket_of: dict[nn.Parameter, Bucket] = {}
        for bucket in buckets:
            for parameter in bucket.parameters:
                self._bucket_of[parameter] = bucket

    def arrived(self, parameter: Tensor) -> None:
        """Note that a gradient is computed; send the buckets that are complete and next."""
        assert isinstance(parameter, nn.Parameter)
        self._bucket_of[parameter].missing -= 1
        while self.sent < len(self.buckets) and self.buckets[self.sent].missing == 0:
            self._send_next()

    def send_rest(self) -> None:
        """Send all buckets that wait for a gradient which does not come."""
        while self.sent < len(self.buckets):
            self._send_next()

    def _send_next(self) -> None:
        self.buckets[self.sent].send()
        self.sent += 1


@contextmanager
def averaged(
    parameters: Iterable[nn.Parameter], world: World, most: int = BUCKET
) -> Iterator[None]:
    """Around a backward pass: gradients become their means over all processes.

    Args:
        parameters: without gradients at the start.
        most: bytes of a bucket.

    Raises:
        PeerLost: another process was lost.
    """
    if world.size == 1:
        yield
        return
    buckets = buckets_of(parameters, most)
    sender = _Sender(buckets)
    handles = []
    for bucket in buckets:
        for parameter in bucket.parameters:
            handles.append(parameter.register_post_accumulate_grad_hook(sender.arrived))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    sender.send_rest()
    for bucket in buckets:
        bucket.receive(world.size)
