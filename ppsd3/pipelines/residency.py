"""Where networks are while they do not compute: in memory, on another device, or in their files.

A pipeline takes each network for a stage of its work by ``with pipe.using(name) as network:``. What happens at either
end is decided here and nowhere else.
"""

import contextlib
import os

import numpy as np
import paddle
from paddle import nn

from ..modeling_utils import to_be_filled
from ..quantization import CONFIG_KEY
from ..serialization.tensors import floating_dtype, put
from ..utils.device import release_freed_memory
from ..utils.errors import InputError

# A sequentially offloaded network keeps smaller tensors (norms, biases, tables) on the device: a few percent of it,
# and read from outside of the layers that own them.
_SMALL = 2**20


class OnDemandNetwork:
    """Stands in a pipeline for a network that is read from its files whenever it is used, and forgotten after that.

    Args:
        class_ (type), directory (str), name (str): the network's class, its checkpoint, and its component there.
        options (dict): for ``class_.from_pretrained``: ``paddle_dtype``, ``storage_dtype``, ``variant``.

    Attributes:
        config (FrozenConfig), dtype (paddle dtype): of the network, known without reading it.
    """

    def __init__(self, class_, directory, name, options):
        self.network_class, self.directory, self.name, self.options = class_, directory, name, options
        self.dtype = floating_dtype(options.get("paddle_dtype"))
        with to_be_filled():  # a skeleton without weights, for the defaults that its file leaves out
            config = class_.load_config(os.path.join(directory, name))
            config.pop(CONFIG_KEY, None)  # of an int8 checkpoint
            self.config = class_.from_config(config).config
        self._network, self._users = None, 0
        self._calls = {}  # method -> its keyword arguments, called after each loading

    @contextlib.contextmanager
    def resident(self):
        """The network, read now unless an outer block has it, and forgotten at the end of the outermost block."""
        self._users += 1
        try:
            if self._network is None:
                self._network = self.network_class.from_pretrained(self.directory, subfolder=self.name, **self.options)
                for method, options in self._calls.items():
                    getattr(self._network, method)(**options)
            yield self._network
        finally:
            self._users -= 1
            if not self._users and self._network is not None:
                for tensor in _tensors(self._network, include_sublayers=True):
                    tensor._clear_data()  # whoever still refers to the network: its memory is not kept
                self._network = None
                release_freed_memory()

    @property
    def device(self):
        """Where it will be."""
        return paddle.framework._current_expected_place() if self._network is None else self._network.device

    def call_after_loading(self, method, **options):
        """Calls ``network.method(**options)`` whenever the network has been read."""
        self._calls.pop(method, None)
        self._calls[method] = options

    def fingerprint(self):
        """Bytes that change when the network's files or the way to load them do."""
        folder = os.path.join(self.directory, self.name)
        files = [(entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in os.scandir(folder)]
        options = sorted(self.options.items(), key=str)
        calls = [(method, sorted((k, _as_text(v)) for k, v in some.items())) for method, some in self._calls.items()]
        return repr((self.network_class.__name__, sorted(files), options, calls)).encode()

    def save_pretrained(self, save_directory, **options):
        """See :meth:`ppsd3.modeling_utils.ModelMixin.save_pretrained`."""
        with self.resident() as network:
            network.save_pretrained(save_directory, **options)

    def __getattr__(self, attribute):
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        raise AttributeError(
            f"The {self.name} is loaded on demand and has no {attribute!r} between calls. Use "
            f"`with pipe.using({self.name!r}) as network:`, or load the pipeline without load_components='on_demand'."
        )

    def __repr__(self):
        return f"OnDemandNetwork({self.network_class.__name__}, {self.directory!r}, {self.name!r})"


class Loan:
    """Tensors that are copied to a device for a while, and afterwards have again the memory that they had.

    Args:
        tensors (list of Tensor): parameters and buffers, nowhere changed meanwhile.
        place (paddle place): of the copies.
    """

    def __init__(self, tensors, place):
        self.tensors, self.place, self._homes = tensors, place, []

    def begin(self):
        with paddle.no_grad():
            for tensor in self.tensors:
                home = paddle.empty([0], tensor.dtype)
                tensor._share_buffer_to(home)
                self._homes.append(home)
                put(tensor, tensor.detach()._copy_to(self.place, True))

    def end(self):
        for tensor, home in zip(self.tensors, self._homes):
            put(tensor, home)
        self._homes = []


class Resident:
    """The networks stay where they are."""

    place = None

    @contextlib.contextmanager
    def resident(self, network):
        yield network


class ModelOffload(Resident):
    """A network is on ``place`` while it is used, and in the computer's memory otherwise."""

    def __init__(self, networks, place):
        self.place = place

    @contextlib.contextmanager
    def resident(self, network):
        loan = Loan(_tensors(network, include_sublayers=True), self.place)
        loan.begin()
        try:
            yield network
        finally:
            loan.end()


class SequentialOffload(Resident):
    """Each layer is on ``place`` while it is called. Small tensors stay there."""

    def __init__(self, networks, place):
        self.place, self._hooks = place, []
        for network in networks:
            for layer in network.sublayers(include_self=True):
                self._attach(layer)

    def _attach(self, layer):
        tensors = _tensors(layer, include_sublayers=False)
        Loan([t for t in tensors if t.size < _SMALL], self.place).begin()  # and never ended
        large = [t for t in tensors if t.size >= _SMALL]
        if not large:
            return
        loan = Loan(large, self.place)
        self._hooks += [
            layer.register_forward_pre_hook(lambda layer, inputs: loan.begin()),
            layer.register_forward_post_hook(lambda layer, inputs, output: loan.end()),
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


def _as_text(value):
    return value.tobytes().hex() if isinstance(value, np.ndarray) else repr(value)


def _tensors(layer, include_sublayers):
    """Parameters and buffers, each once."""
    found = [
        *layer.parameters(include_sublayers=include_sublayers),
        *layer.buffers(include_sublayers=include_sublayers),
    ]
    return list({id(tensor): tensor for tensor in found}.values())


def is_network(part):
    """Whether a component is a network, here or on demand."""
    return isinstance(part, (nn.Layer, OnDemandNetwork))
