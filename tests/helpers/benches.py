"""A bench's work on tiny networks, done in this process."""

from ppsd3.bench.benches import BY_NAME

TASKS = [name for name in BY_NAME if name not in ("scale", "generate")]


def make(name):
    return next(bench for bench in BY_NAME[name].make(tiny=True) if bench.name == name)


def outputs_of(bench, side, workspace):
    """What the second run gives, as a worker would save it."""
    side.setup(workspace)
    if not bench.always_fresh:
        side.warm_up()
    return {name: bench.sample(array) for name, array in side.arrays(side.run())}
