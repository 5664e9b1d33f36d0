"""``.pdparams`` files: what ``paddle.save`` writes is read, and nothing that a pickle could do is done."""

import builtins
import os
import pickle
import random
import subprocess
import sys

import numpy as np
import paddle
import pytest

from ppsd3.serialization.pdparams import PdparamsFile
from ppsd3.serialization.tensors import cast
from ppsd3.utils.errors import CheckpointFormatError, CheckpointNotFoundError


def arrays():
    rng = np.random.default_rng(0)
    return {
        "linear.weight": rng.standard_normal((40, 24)).astype("f4"),
        "columns.weight": rng.standard_normal((24, 40)).astype("f4").T,
        "half": rng.standard_normal((3, 5, 2)).astype("f2"),
        "double": rng.standard_normal(7),
        "ids": np.arange(300),
        "flags": np.array([True, False]),
        "scalar": np.array(0.5, "f4"),
        "nothing": np.zeros((0, 3), "f4"),
    }


def write(path, content, protocol=4):
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model_state.pdparams"


class TestWhatIsRead:
    @pytest.mark.parametrize("protocol", [3, 4])
    def test_arrays(self, path, protocol):
        file = PdparamsFile(write(path, arrays(), protocol))
        assert file.keys() == list(arrays()) and file.metadata == {"format": "pd"}
        for name, expected in arrays().items():
            assert file.info(name)[:2] == (expected.dtype.name, expected.shape)
            np.testing.assert_array_equal(file.load(name), expected)
            assert file.load(name).flags.c_contiguous and file.load(name).flags.writeable

    def test_protocol_2_has_bytes_as_text(self, path):
        """As Paddle up to 2.1 wrote them; an empty array would be a call of another name there."""
        content = {name: array for name, array in arrays().items() if array.size}
        file = PdparamsFile(write(path, content, 2))
        for name, expected in content.items():
            np.testing.assert_array_equal(file.load(name), expected)

    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
    def test_what_paddle_writes(self, path, dtype):
        layer = paddle.nn.Linear(6, 40)
        layer.to(dtype=dtype)
        paddle.save(layer.state_dict(), str(path))
        file = PdparamsFile(path)
        assert sorted(file.keys()) == ["bias", "weight"]
        for name, tensor in layer.state_dict().items():
            assert file.info(name)[:2] == (dtype, tuple(tensor.shape))
            expected = cast(tensor, "float32").numpy()
            np.testing.assert_array_equal(file.load(name, "float32"), expected)
            np.testing.assert_array_equal(file.read(name, "float32").numpy(), expected)
            assert str(file.read(name).dtype).endswith(dtype)
            np.testing.assert_array_equal(file.load(name, "float32", scale=2.0), expected * 2)

    def test_parts(self, path):
        file = PdparamsFile(write(path, arrays()))
        for name in ("linear.weight", "columns.weight"):
            np.testing.assert_array_equal(file.load(name, part=(1, 2)), np.split(arrays()[name], 2)[1])
            np.testing.assert_array_equal(
                file.load(name, "float16", (1, 2)), np.split(arrays()[name].astype("f2"), 2)[1]
            )

    def test_names_of_parameters_are_left_out(self, path):
        content = {"weight": np.zeros((2, 2), "f4"), "StructuredToParameterName@@": {"weight": "linear_0.w_0"}}
        assert PdparamsFile(write(path, content)).keys() == ["weight"]

    def test_large_arrays_stay_in_the_file(self, path):
        """An aligned array is the mapped memory itself; of a copy, the pages can be given back."""
        content = {f"{'x' * pad}": np.arange(1000, dtype="f4") + pad for pad in range(1, 9)}
        file = PdparamsFile(write(path, content))
        loaded = {name: file.load(name) for name in content}
        mapped = [name for name, array in loaded.items() if array.base is not None]
        assert {info.start % 4 == 0 for info in map(file.info, mapped)} == {True} and mapped
        assert all(file.info(name).start % 4 for name in set(content) - set(mapped))
        for name, expected in content.items():
            file.forget(name)
            np.testing.assert_array_equal(file.load(name), expected)

    def test_a_change_in_memory_leaves_the_file_alone(self, path):
        before = write(path, arrays()).read_bytes()
        PdparamsFile(path).load("ids")[:] = 0
        assert path.read_bytes() == before


# -------------------------------------------------------------------------------------------------------------- hostile

CANARY = "PPSD3_TEST_CANARY"


class Calls:
    """Pickled as a call of ``function``."""

    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


class BuiltLater:
    """Pickled as an object with a state, which ``BUILD`` would set."""

    def __init__(self):
        self.x = 1


def raw(*instructions):
    return b"\x80\x04" + b"".join(instructions) + b"."


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


def named(module, name):
    return text(module) + text(name) + b"\x93"


SETENV = f"__import__('os').environ.__setitem__('{CANARY}', '1')"
HOSTILE = {
    "os.system": (Calls(os.system, f"export {CANARY}=1; touch canary"), "asks for (posix|nt).system"),
    "eval": (Calls(eval, SETENV), r"asks for (builtins|__builtin__)\.eval"),
    "exec": (Calls(exec, SETENV), r"asks for (builtins|__builtin__)\.exec"),
    "getattr": (Calls(getattr, "x", "__class__"), r"asks for (builtins|__builtin__)\.getattr"),
    "import": (Calls(builtins.__import__, "os"), r"asks for (builtins|__builtin__)\.__import__"),
    "subprocess": (Calls(subprocess.Popen, ["touch", "canary"]), r"asks for (subprocess|commands)\.Popen"),
    "a class": (BuiltLater(), "asks for copyreg._reconstructor|has the instruction NEWOBJ|asks for .*BuiltLater"),
    "numpy.load": (Calls(np.load, "canary.npy"), "asks for numpy.*load"),
    "a numpy scalar": (np.float32(1.0), "asks for numpy.*scalar"),
    "tuple": (Calls(tuple, [1]), r"asks for (builtins|__builtin__)\.tuple"),
    "a list": ([1, 2], "has the instruction EMPTY_LIST"),
    "a set": ({1, 2}, r"has the instruction EMPTY_SET|asks for (builtins|__builtin__)\.set"),
    "objects in an array": (np.array([{}], object), "EMPTY_LIST|numpy's dtype O8|not of numbers"),
    "dates": (np.array(["2020-01-01"], "M8[D]"), "numpy's dtype M8|other arguments|EMPTY_LIST|a NoneType"),
    "big-endian numbers": (np.arange(3, dtype=">f4"), "numpy's dtype >f4"),
    "complex numbers": (np.zeros(2, "c8"), "numpy's dtype c8"),
    "records": (np.zeros(2, "f4,i4"), "numpy's dtype V8|other|not of numbers"),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("where", ["value", "whole", "after"])
def test_hostile_pickles(path, tmp_path, monkeypatch, kind, protocol, where):
    monkeypatch.chdir(tmp_path)
    value, message = HOSTILE[kind]
    content = {
        "value": {"weight": value},
        "whole": value,
        "after": {"weight": np.zeros((20, 20), "f4"), "bias": value},
    }[where]
    write(path, content, protocol)
    if protocol == 5:  # the arrays themselves come by another name then, which paddle.save does not write
        message += "|asks for numpy.*_frombuffer"
    with pytest.raises(CheckpointFormatError, match=message) as caught:
        PdparamsFile(path)
    assert str(path) in str(caught.value) and "Nothing of it was run" in str(caught.value)
    assert CANARY not in os.environ and os.listdir(tmp_path) == [path.name]


ARRAY = named("numpy.core.multiarray", "_reconstruct") + named("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
F4 = (
    named("numpy", "dtype")
    + text("f4")
    + b"\x89\x88\x87R(K\x03"
    + text("<")
    + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
)


def array_with(shape, data=b"C\x04abcd", dtype=F4):
    return b"}" + text("w") + ARRAY + b"(K\x01" + shape + dtype + b"\x89" + data + b"tbs"


def test_the_arrays_made_by_hand_are_read(path):
    assert PdparamsFile(write(path, raw(array_with(b"K\x01\x85")))).load("w").tobytes() == b"abcd"


ODD = {
    "shape larger than the data": (array_with(b"K\x02\x85"), "does not go with its bytes"),
    "negative shape": (array_with(b"J\xff\xff\xff\xff\x85"), "shape Paddle cannot hold"),
    "shape of text": (array_with(text("x") + b"\x85"), "shape Paddle cannot hold"),
    "shape of True": (array_with(b"\x88\x85"), "shape Paddle cannot hold"),
    "no shape": (array_with(b"K\x01"), "damaged"),
    "ten axes": (array_with(b"(" + b"K\x01" * 10 + b"t"), "shape Paddle cannot hold"),
    "huge and empty": (array_with(b"K\x00\x8a\x09" + bytes(8) + b"\x01\x86", b"C\x00"), "does not go with its bytes"),
    "data of text": (array_with(b"K\x01\x85", text("abcd")), "not of numbers"),
    "data of a dict": (array_with(b"K\x01\x85", b"}"), "not of numbers"),
    "dtype is a number": (array_with(b"K\x01\x85", dtype=b"K\x05"), "not of numbers"),
    "unfilled array": (b"}" + text("w") + ARRAY + b"s", "no pickle that paddle.save writes"),
    "a number as the whole": (b"K\x01", "holds a int"),
    "a number as a tensor": (b"}" + text("w") + b"K\x01s", "under 'w' is a int"),
    "a nested dict": (b"}" + text("model") + b"}s", "under 'model' is a dict"),
    "an empty dict": (b"}", "has no tensors"),
    "a key that is a number": (b"}K\x01K\x02s", "under a int"),
    "items in a tuple": (b")" + text("a") + b"K\x01s", "in a tuple"),
    "a call of text": (text("os") + b")R", "calls a str"),
    "a call without arguments": (named("numpy", "dtype") + b")R", "damaged"),
    "a call of ndarray": (named("numpy", "ndarray") + b")R", "calls numpy's ndarray"),
    "a state for a dict": (b"}}b", "changes a dict"),
    "a state for a name": (named("numpy", "ndarray") + b"}b", "changes a _Mark"),
    "a name on the stack that is a dict": (b"}" + text("x") + b"\x93", "name is no text"),
    "a name by its extension code": (b"\x82\x01", "EXT1"),
    "a persistent name": (text("x") + b"Q", "BINPERSID"),
    "an instance of the first protocol": (b"(ios\nsystem\n", "INST"),
    "an object": (b"(" + named("os", "system") + b"o", "asks for os.system"),
    "a name of the first protocol": (b"cos\nsystem\n", "asks for os.system"),
    "a name of many megabytes": (b"c" + b"x" * 10_000_000 + b"\ny\n", "damaged"),
    "nothing on the stack": (b"\x85", "damaged"),
    "no mark": (b"t", "damaged"),
    "what was not remembered": (b"h\x07", "damaged"),
    "an unknown instruction": (b"\xfe", "damaged"),
    "split arrays": (
        b"}(" + text("w") + ARRAY + text("UnpackBigParamInfor@@") + b"}" + text("w") + b"}su",
        "in pieces.*default protocol",
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_pickles(path, kind):
    instructions, message = ODD[kind]
    with pytest.raises(CheckpointFormatError, match=message) as caught:
        PdparamsFile(write(path, raw(instructions)))
    assert len(str(caught.value)) < 2000


def test_tuples_that_would_fill_the_memory_if_they_were_shown(path):
    doubled = b"K\x01" + b"2\x86" * 100
    for content in (doubled, array_with(doubled), array_with(b"K\x01\x85", dtype=doubled), b"}" + doubled + b"K\x01s"):
        with pytest.raises(CheckpointFormatError):
            PdparamsFile(write(path, raw(content)))
    remembered = b"K\x01\x94" + b"".join(b"h" + bytes([i]) * 1 + b"h" + bytes([i]) + b"\x86\x94" for i in range(200))
    for content in (remembered, array_with(remembered), array_with(b"K\x01\x85", dtype=remembered)):
        with pytest.raises(CheckpointFormatError) as caught:
            PdparamsFile(write(path, raw(content)))
        assert len(str(caught.value)) < 2000


def test_cut_off_and_damaged_files(path):
    """Every cut is an error of ours, and no change of a byte is anything worse."""
    whole = pickle.dumps({"a": np.arange(100, dtype="f4"), "b": np.zeros((3, 2), "f2")}, 4)
    for length in range(len(whole)):
        with pytest.raises(CheckpointFormatError):
            PdparamsFile(write(path, whole[:length]))
    rng = random.Random(0)
    for _ in range(1000):
        changed = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        try:
            file = PdparamsFile(write(path, bytes(changed)))
            for name in file.keys():
                file.load(name)
        except CheckpointFormatError:
            pass


def test_no_such_file_and_none_at_all(path):
    with pytest.raises(CheckpointNotFoundError, match="does not exist"):
        PdparamsFile(path)
    with pytest.raises(CheckpointFormatError, match="empty"):
        PdparamsFile(write(path, b""))


def test_it_imports_nothing(path):
    """The names in a pickle are not looked up: a module that one names is not imported."""
    write(path, b"\x80\x02cantigravity\nfly\n)R.")
    code = (
        "import sys\nfrom ppsd3.serialization.pdparams import PdparamsFile\n"
        f"try:\n    PdparamsFile({str(path)!r})\nexcept ValueError as error:\n    print(error)\n"
        "print('antigravity' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "asks for antigravity.fly" in output and output.splitlines()[-1] == "False"
