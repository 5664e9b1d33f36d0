"""Say what a checkpoint holds and whether it fits this machine, without loading its weights."""

import dataclasses
import os
from collections import Counter

from .. import __version__
from ..configuration_utils import read_json
from ..serialization import Checkpoint
from ..utils.hub import resolve_checkpoint
from ..utils.weight_names import available_variants

BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclasses.dataclass
class Component:
    """``values``: number of scalars in the weights, ``int8_values`` of them in int8; ``dtypes``: name -> tensors."""

    name: str
    class_name: str
    values: int
    dtypes: Counter
    bytes_on_disk: int
    int8_values: int = 0


def add_arguments(parser):
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="directory, hub id or bundled model, e.g. shapes")
    parser.add_argument("--variant", help="which weight files, e.g. fp16 (default: the only ones there are)")


def run(arguments):
    from ..pipelines.pipeline_utils import INDEX_NAME

    directory = resolve_checkpoint(arguments.checkpoint, variant=arguments.variant)
    index = read_json(os.path.join(directory, INDEX_NAME), purpose="the list of the pipeline's components")
    components = [
        read_component(directory, name, entry[1], arguments.variant)
        for name, entry in index.items()
        if isinstance(entry, list) and entry[1] is not None
    ]
    print(f"{index.get('_class_name')} in {directory}\n")
    print("\n".join(_component_table(components)) + "\n")
    print("\n".join(_memory_table(components)) + "\n")
    print(_machine())


def read_component(directory, name, class_name, variant=None):
    """What the files of one component say; weights are counted from their headers."""
    from ..pipelines.pipeline_utils import component_class

    folder = os.path.join(directory, name)
    on_disk = sum(os.path.getsize(os.path.join(folder, file)) for file in os.listdir(folder))
    weights_name = getattr(component_class(name, class_name, directory), "weights_name", None)
    if weights_name is None:
        return Component(name, class_name, 0, Counter(), on_disk)
    variants = available_variants(os.listdir(folder))
    chosen = variants[0] if variant is None and len(variants) == 1 else variant
    checkpoint = Checkpoint.open(folder, weights_name, chosen)
    tensors = [checkpoint.info(tensor) for tensor in checkpoint.keys()]
    values = sum(_product(tensor.shape) for tensor in tensors)
    int8_values = sum(_product(tensor.shape) for tensor in tensors if tensor.dtype == "int8")
    return Component(name, class_name, values, Counter(tensor.dtype for tensor in tensors), on_disk, int8_values)


def _product(shape):
    product = 1
    for size in shape:
        product *= size
    return product


def _component_table(components):
    yield f"{'component':16} {'class':32} {'parameters':>11} {'on disk':>10}  dtype"
    for part in components:
        values = _count(part.values) if part.values else ""
        dtypes = ", ".join(part.dtypes)
        yield f"{part.name:16} {part.class_name:32} {values:>11} {_size(part.bytes_on_disk):>10}  {dtypes}"
    total = sum(part.values for part in components), sum(part.bytes_on_disk for part in components)
    yield f"{'total':16} {'':32} {_count(total[0]):>11} {_size(total[1]):>10}"


def _memory_table(components):
    """Memory of the weights, which is nearly all of it, beside what this machine has free."""
    places = _memory_places()
    without_t5 = [part for part in components if part.name != "text_encoder_3"]
    yield f"{'weights in memory':30} " + " ".join(f"{name + ' (' + _size(free) + ')':>22}" for name, free in places)
    for dtype, width in BYTES_PER_VALUE.items():
        for label, parts in (("", components), (" without T5", without_t5)):
            need = sum((part.values - part.int8_values) * width + part.int8_values for part in parts)
            verdicts = " ".join(f"{_verdict(need, dtype, *place):>22}" for place in places)
            yield f"{dtype + label:19} {_size(need):>10} {verdicts}"


def _verdict(need, dtype, place, free):
    if not place.startswith("gpu") and dtype != "float32":
        return "needs a GPU"  # Paddle has no 16-bit matrix product for the CPU
    return "fits" if need < free else "does not fit"


def _memory_places():
    """[(name, bytes)]: what the main memory has free, and all that each GPU has."""
    import paddle

    places = [("CPU", _free_memory())]
    if paddle.is_compiled_with_cuda():
        for i in range(paddle.device.cuda.device_count()):
            places.append((f"gpu:{i}", paddle.device.cuda.get_device_properties(i).total_memory))
    return places


def _free_memory():
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux: all there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _machine():
    import paddle

    from ..ops import native
    from ..ops.quantized import integer_products
    from ..utils.device import use_all_cores

    in_use, detail = native.status()
    return (
        f"ppsd3 {__version__}, Paddle {paddle.__version__} on {paddle.get_device()}, {use_all_cores()} CPU threads\n"
        f"native CPU kernels: {'in use' if in_use else 'not in use'} ({detail})\n"
        f"int8 models: {'integer products (VNNI)' if integer_products() else 'int8 weights, products in float'}"
    )


def _count(number):
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.2f} {unit}"
    return str(number)


def _size(number):
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{number} B"
