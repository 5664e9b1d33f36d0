"""Argument types of the native functions come from the header, and are checked."""

import ctypes
import shutil
import subprocess

import pytest

from ppsd3.ops import features, native
from ppsd3.ops.native import prototypes
from ppsd3.utils.errors import KernelError, KernelMemoryError

needs_kernels = pytest.mark.skipif(not features.has("kernels"), reason="no native kernels here")
HEADER = 'enum status : int32_t {{ OK = 0, LOST = 7, }};\n{top}\nextern "C" {{\n{functions}\n}}\n'


def parse(tmp_path, functions, top=""):
    path = tmp_path / "interface.h"
    path.write_text(HEADER.format(top=top, functions=functions))
    return prototypes.parse(path)


def test_what_a_header_declares(tmp_path):
    structures, functions, statuses = parse(
        tmp_path,
        "// a comment; with a semicolon\nint32_t ppsd3_a(const float* x,\n  int64_t n, bool b, const Pair* p);\n"
        "int32_t ppsd3_b();",
        "struct Pair { float* base[2]; int64_t rows, stride; };",
    )
    assert statuses == {0: "OK", 7: "LOST"}
    assert [name for name, _ in structures["Pair"]._fields_] == ["base", "rows", "stride"]
    assert ctypes.sizeof(structures["Pair"]) == 32
    pair = ctypes.POINTER(structures["Pair"])
    assert functions == {"ppsd3_a": [ctypes.c_void_p, ctypes.c_int64, ctypes.c_bool, pair], "ppsd3_b": []}


@pytest.mark.parametrize(
    "function",
    [
        "int32_t ppsd3_a(double x);",
        "int32_t ppsd3_a(const double* x);",
        "int32_t ppsd3_a(float x[2]);",
        "int32_t ppsd3_a(float** x);",
        "int32_t ppsd3_a(float);",
        "void ppsd3_a(float x);",
        "int32_t other(float x);",
        "int32_t ppsd3_a(float x)",
    ],
)
def test_what_is_not_understood_is_an_error(tmp_path, function):
    with pytest.raises(ValueError, match=r"not understood|not known|no end"):
        parse(tmp_path, function)


def test_other_declarations_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="not understood"):
        parse(tmp_path, "", "typedef float real;")


@needs_kernels
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm here")
def test_the_library_exports_what_the_header_declares():
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", native.lib()._name], capture_output=True, text=True, check=True
    )
    exported = {line.split()[-1] for line in listing.stdout.splitlines() if "ppsd3_" in line}
    declared = set(prototypes.parse()[1])
    assert exported <= declared
    functions = {
        "ppsd3_amx_",
        *(function for function, _ in features.FUNCTIONS.values()),
    }  # "Only where" a CPU has something
    absent = {name for name in declared - exported if not name.startswith(tuple(functions))}
    assert absent <= ({"ppsd3_quantize_rows"} if not features.has("vnni") else set())


@needs_kernels
def test_wrong_arguments_are_refused():
    gelu = native.lib().ppsd3_gelu
    for arguments in ((None, None, None, 1.5, 2), (0.5, None, None, 1, 2), (None, None, None, 0)):
        with pytest.raises((ctypes.ArgumentError, TypeError)):
            gelu(*arguments)
    with pytest.raises(ctypes.ArgumentError):
        native.lib().ppsd3_attention(ctypes.byref(prototypes.structure("Tokens")()), *[None] * 5, 1.0, None, 0, 0)
    gelu(None, None, None, 0, 8)


@pytest.mark.skipif(not features.has("pread"), reason="no native kernel here that reads files")
def test_a_status_is_an_error():
    with pytest.raises(KernelError, match=r"ppsd3_read_floats failed \(READ_FAILED\).*download it again"):
        native.lib().ppsd3_read_floats(-1, 0, (ctypes.c_float * 4)(), 4, True)


def test_each_status_has_its_error():
    class Function:
        __name__ = "ppsd3_gelu"

    numbers = {name: number for number, name in prototypes.parse()[2].items()}
    assert prototypes._check(numbers["OK"], Function, ()) is None
    with pytest.raises(KernelMemoryError, match="Not enough memory"):
        prototypes._check(numbers["OUT_OF_MEMORY"], Function, ())
    with pytest.raises(KernelError, match="use_native"):
        prototypes._check(99, Function, ())
