"""Where networks are while they do not compute: in memory, on another device, or in their files.

A pipeline takes each network for a stage of its work by ``with pipe.using(name) as network:``. What happens at either
end is decided here and nowhere else.
"""

import contextlib
import threading

import paddle
from paddle import nn

from ..loaders.on_demand import OnDemandNetwork, tensors_of
from ..serialization.tensors import put
from ..utils.errors import InputError
from ..utils.paddle_internals import copy_to, share_memory

# A sequentially offloaded network keeps smaller tensors (norms, biases, tables) on the device: a few percent of it,
# and read from outside of the layers that own them.
_SMALL = 2**20


class Loan:
    """Tensors that are copied to a device for a while, and afterwards have again the memory that they had.

    Several users may have them there: the first to begin brings them, the last to end takes them back. One that an
    error kept from its end may begin again.

    Args:
        tensors: parameters and buffers, nowhere changed meanwhile.
        place: of the copies.
    """

    def __init__(self, tensors, place):
        self.tensors, self.place, self._homes = tensors, place, []
        self.users, self._lock = set(), threading.Lock()

    def begin(self, user=None):
        with self._lock, paddle.no_grad():
            for tensor in () if self.users else self.tensors:
                home = paddle.empty([0], tensor.dtype)
                share_memory(tensor, home)
                self._homes.append(home)
                put(tensor, copy_to(tensor.detach(), self.place))
            self.users.add(user)

    def end(self, user=None):
        with self._lock:
            self.users.discard(user)
            if not self.users:
                for tensor, home in zip(self.tensors, self._homes):
                    put(tensor, home)
                self._homes = []


class Resident:
    """The networks stay where they are: in memory, or in their files."""

    place = None

    def resident(self, network):
        """Context manager that gives the network, ready to compute."""
        return network.resident() if isinstance(network, OnDemandNetwork) else contextlib.nullcontext(network)


class ModelOffload(Resident):
    """A network is on ``place`` while it is used, and in the computer's memory otherwise."""

    def __init__(self, networks, place):
        self.place, self._loans, self._lock = place, {}, threading.Lock()  # network -> its loan

    @contextlib.contextmanager
    def resident(self, network):
        user = object()
        with self._lock:
            if network not in self._loans:
                self._loans[network] = Loan(tensors_of(network, include_sublayers=True), self.place)
            loan = self._loans[network]
            loan.begin(user)
        try:
            yield network
        finally:
            with self._lock:
                loan.end(user)
                if not loan.users:
                    del self._loans[network]  # what it has may have changed by the next time


class SequentialOffload(Resident):
    """Each layer is on ``place`` while it is called. Small tensors stay there."""

    def __init__(self, networks, place):
        self.place, self._hooks = place, []
        for network in networks:
            for layer in network.sublayers(include_self=True):
                self._attach(layer)

    def _attach(self, layer):
        tensors = tensors_of(layer, include_sublayers=False)
        Loan([t for t in tensors if t.size < _SMALL], self.place).begin()  # and never ended
        large = [t for t in tensors if t.size >= _SMALL]
        if not large:
            return
        loan = Loan(large, self.place)
        self._hooks += [
            layer.register_forward_pre_hook(lambda layer, inputs: loan.begin(threading.get_ident())),
            layer.register_forward_post_hook(lambda layer, inputs, output: loan.end(threading.get_ident())),
        ]


def offload_place(device):
    """The place of a GPU ``device``, e.g. ``"gpu:0"``.

    Raises:
        InputError: there is no such device here.
    """
    index = str(device).replace("cuda", "gpu").partition(":")[2]
    count = paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0
    if not str(device).startswith(("gpu", "cuda")) or not (index or "0").isdigit() or int(index or 0) >= count:
        raise InputError(
            f"device is {device!r}, and Paddle sees {count} GPUs here: there is nothing to offload from. To save "
            "memory on a CPU load the pipeline with load_components='on_demand', and storage_dtype='float16'."
        )
    return paddle.CUDAPlace(int(index or 0))


def is_network(part):
    """Whether a component is a network, here or on demand."""
    return isinstance(part, (nn.Layer, OnDemandNetwork))
