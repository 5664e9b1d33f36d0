"""Exponential moving average of weights: what is sampled from and shipped."""

import contextlib

import paddle


class EMA:
    """Shadow copy of parameters, ``shadow = decay * shadow + (1 - decay) * parameter`` per step.

    Args:
        parameters (dict of str to Parameter): by structured name.
        decay (float): per step, in [0, 1). Early on ``(1 + step) / (10 + step)`` if that is smaller, so that the random
            initial weights are soon forgotten.
        every (int): steps between updates; the decay is raised to this power, so that the horizon stays the same.
    """

    def __init__(self, parameters, decay=0.9995, every=4):
        self.parameters, self.decay, self.every = parameters, decay, every
        self.shadow = {name: p.detach().clone() for name, p in parameters.items()}

    @paddle.no_grad()
    def update(self, step):
        """Call once a step, after the optimizer."""
        if step % self.every:
            return
        keep = min(self.decay, (1 + step) / (10 + step)) ** self.every
        for name, parameter in self.parameters.items():
            shadow = self.shadow[name]
            shadow.scale_(keep)
            shadow.add_(parameter.detach() * (1 - keep))

    def copy_to_parameters(self):
        """The parameters take the averages over for good."""
        _assign(self.parameters, self.shadow)

    @contextlib.contextmanager
    def applied(self):
        """The parameters hold the averages inside the block, and their own values again after it."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        _assign(self.parameters, self.shadow)
        try:
            yield
        finally:
            _assign(self.parameters, own)


@paddle.no_grad()
def _assign(parameters, values):
    for name, parameter in parameters.items():
        parameter.set_value(values[name])
