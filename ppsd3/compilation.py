"""Networks as static graphs: a function of tensors traced once into a Paddle program, for all sizes.

A traced program runs without Python between its operations. On a GPU that is what time goes into at small sizes; on a
CPU it gives up the native kernels, which a program cannot hold, and is slower than the eager way with them.
"""

import paddle
from paddle import nn
from paddle.static import InputSpec


class CompiledFunction:
    """A function of tensors and of a network's parameters, traced at the first call.

    Args:
        network (nn.Layer): whose parameters ``function`` reads; later changes of their values are seen.
        function (callable): tensors -> one tensor, in Paddle operations that do not depend on the sizes of open axes.
        shapes (sequence of lists): of each argument; -1 is an axis whose size differs from call to call.
        dtype (paddle dtype): of the arguments.
    """

    def __init__(self, network, function, shapes, dtype):
        specs = [InputSpec(shape, dtype) for shape in shapes]
        entry = _Entry(network, function)
        entry.training = False  # an inference program; eval() would switch the network itself
        self._call = paddle.jit.to_static(entry, input_spec=[specs], full_graph=True)

    def __call__(self, *tensors):
        return self._call(list(tensors))


class _Entry(nn.Layer):
    """What is traced. A layer, since parameters belong to a program only through the layer that it is made from."""

    def __init__(self, network, function):
        super().__init__()
        self.network = network
        self._plain = paddle.jit.not_to_static(lambda tensors: function(*tensors))

    def forward(self, tensors):
        return self._plain(tensors)  # runs as it stands: no source is rewritten


class Compilable:
    """A network that can run parts of itself as static graphs: mixed into models, which call :meth:`_graph`."""

    _graphs = None  # part, dtype, variant -> CompiledFunction; None until compile()

    def compile(self):
        """Runs as a static graph from the next call on, and returns the model.

        One trace serves all sizes and timesteps; another is made after a change of dtype. Calls that record gradients
        run eagerly.
        """
        object.__setattr__(self, "_graphs", {})
        return self

    def quantize(self, *arguments, **options):
        """See :meth:`ppsd3.modeling_utils.ModelMixin.quantize`."""
        super().quantize(*arguments, **options)
        self._forget_graphs()
        return self

    @property
    def is_compiled(self):
        """Whether the next call runs as a static graph."""
        return self._graphs is not None and not paddle.is_grad_enabled()

    def _graph(self, name, function, shapes, *variant):
        """The graph of ``function``, traced at its first call; ``variant`` is what it depends on beside its tensors."""
        key = (name, self.dtype, *variant)
        if key not in self._graphs:
            self._graphs[key] = CompiledFunction(self, function, shapes, self.dtype)
        return self._graphs[key]

    def _forget_graphs(self):
        """For changes that a traced graph would not see."""
        if self._graphs is not None:
            self._graphs.clear()
