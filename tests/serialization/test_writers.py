"""What is written, judged by the safetensors library."""

import numpy as np
import paddle
import pytest
import safetensors

from ppsd3.serialization import SafetensorsFile
from ppsd3.serialization.readers import DTYPES
from ppsd3.serialization.tensors import NUMPY_DTYPES, from_numpy
from ppsd3.serialization.writers import StoredTensor, write_checkpoint, write_tensors

CODES = {name: code for code, name in DTYPES.items()}


def tensors(dtype):
    """Tensors of every shape, under names that JSON must escape."""
    bits = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, 24).astype(np.uint8)
    filled = bits.repeat(8).view(NUMPY_DTYPES[dtype])
    shapes = {"plain": (2, 3), 'q"u\\o\n': (), "名\u00e9\U0001f600": (1, 2, 1, 3), "none": (0, 4), "": (5,)}
    return {name: from_numpy(filled[: int(np.prod(shape))].reshape(shape).copy()) for name, shape in shapes.items()}


def judged(path):
    """{name: (dtype in the format, shape, bytes)} as the library reads the file at ``path``, and its metadata."""
    read = {n: (t["dtype"], t["shape"], bytes(t["data"])) for n, t in safetensors.deserialize(path.read_bytes())}
    with safetensors.safe_open(path, "np") as file:
        return read, file.metadata()


@pytest.mark.parametrize("dtype", sorted(NUMPY_DTYPES))
def test_every_dtype_and_shape(tmp_path, dtype):
    written, metadata = tensors(dtype), {"format": "pt", "名": '"\n'}
    with open(tmp_path / "x.safetensors", "wb") as file:
        write_tensors(file, written, metadata)
    read, read_metadata = judged(tmp_path / "x.safetensors")
    assert read == {n: (CODES[dtype], list(t.shape), t.numpy().tobytes()) for n, t in written.items()}
    assert read_metadata == metadata


def test_nothing_at_all(tmp_path):
    with open(tmp_path / "x.safetensors", "wb") as file:
        write_tensors(file, {})
    assert judged(tmp_path / "x.safetensors") == ({}, None)


def test_shards_and_tensors_that_are_converted_as_they_are_written(tmp_path):
    with open(tmp_path / "source.safetensors", "wb") as file:
        write_tensors(file, {f"t{i}": paddle.full([100], i, "float32") for i in range(5)})
    source = SafetensorsFile(tmp_path / "source.safetensors")
    stored = {name: StoredTensor(source, name, "float16") for name in source.keys()}
    write_checkpoint(str(tmp_path / "out"), "model", stored, max_shard_size=400, format="pd")
    found = {}
    for path in sorted((tmp_path / "out").glob("*.safetensors")):
        read, metadata = judged(path)
        assert metadata == {"format": "pd"} and len(read) <= 2
        found.update(read)
    assert found == {f"t{i}": ("F16", [100], np.full(100, i, np.float16).tobytes()) for i in range(5)}
