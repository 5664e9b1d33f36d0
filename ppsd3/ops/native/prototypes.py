"""Argument types of the native functions, read from the C declarations in ``interface.h``.

The parser knows just the C that is used there; anything else is an error, since a type that is taken for another
corrupts memory.
"""

import ctypes
import functools
import re
from pathlib import Path

from ...utils.errors import KernelError, KernelMemoryError

HEADER = Path(__file__).parent / "interface.h"
_SCALARS = {"bool": ctypes.c_bool, "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "float": ctypes.c_float}
_ARRAYS = {"void", "float", "int8_t", "uint8_t", "uint16_t"}  # their addresses are passed as plain numbers
_ANSWERS = ("_ready", "_lanes", "_threads")  # names of functions that return an answer, not a status
_REMEDIES = {
    "OUT_OF_MEMORY": "Not enough memory: make the picture or the batch smaller, or load the model in int8.",
    "READ_FAILED": "The file ended early or could not be read: download it again.",
}


@functools.cache
def parse(path=HEADER):
    """What a header declares.

    Returns:
        (structures, functions, statuses): name -> ctypes.Structure, name -> list of ctypes, number -> name.

    Raises:
        ValueError: a declaration that is not understood.
    """
    text = re.sub(r"//[^\n]*|^#[^\n]*", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    top, _, prototypes = text.strip().rstrip("}").partition('extern "C" {')
    statuses, structures = {}, {}
    for kind, name, body in re.findall(r"(enum|struct) (\w+)[^{]*\{([^}]*)\};", top):
        if kind == "enum":
            statuses = {int(number): status for status, number in re.findall(r"(\w+) = (\d+)", body)}
        else:
            fields = [field for statement in _statements(body) for field in _fields(statement)]
            structures[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    rest = re.sub(r"(enum|struct) \w+[^{]*\{[^}]*\};", "", top)
    if rest.strip():
        raise ValueError(f"{path.name}: {rest.strip()!r} is not understood.")
    functions = {}
    for statement in _statements(prototypes):
        name, parameters = _matched(r"int32_t (ppsd3_\w+)\((.*)\)", statement)
        functions[name] = [_parameter(p, structures) for p in parameters.split(", ")] if parameters else []
    return structures, functions, statuses


def structure(name):
    """The ctypes.Structure of a struct of the header."""
    return parse()[0][name]


def declare(library):
    """Gives those functions of the header that ``library`` has their types; what they return is checked."""
    for name, types in parse()[1].items():
        if hasattr(library, name):
            function = getattr(library, name)
            function.argtypes, function.restype = types, ctypes.c_int32
            if not name.endswith(_ANSWERS):
                function.errcheck = _check


def _check(status, function, arguments):
    if status:
        name = parse()[2].get(status, str(status))
        error = KernelMemoryError if name == "OUT_OF_MEMORY" else KernelError
        remedy = _REMEDIES.get(
            name, "Please report this; until it is mended, ppsd3.ops.use_native(False) does without."
        )
        raise error(f"The native kernel {function.__name__} failed ({name}). {remedy}")


def _statements(text):
    """Declarations between semicolons, each with single spaces."""
    parts = [" ".join(part.split()).replace("( ", "(") for part in text.split(";")]
    if parts.pop():
        raise ValueError("The last declaration has no end.")
    return parts


def _fields(statement):
    kind, pointer, names = _matched(r"(\w+)(\*?) (.+)", statement)
    ctype = ctypes.c_void_p if pointer else _known(_SCALARS, kind)
    for item in names.split(", "):
        name, length = _matched(r"(\w+)(?:\[(\d+)\])?", item)
        yield name, ctype * int(length) if length else ctype


def _parameter(text, structures):
    kind, pointer = _matched(r"(?:const )?(\w+)(\*?) \w+", text)
    if not pointer:
        return _known(_SCALARS, kind)
    if kind in structures:
        return ctypes.POINTER(structures[kind])
    return ctypes.c_void_p if kind in _ARRAYS else _known({}, kind)


def _known(types, name):
    if name not in types:
        raise ValueError(f"{HEADER.name}: the type {name} is not known.")
    return types[name]


def _matched(pattern, text):
    match = re.fullmatch(pattern, text)
    if match is None:
        raise ValueError(f"{HEADER.name}: {text!r} is not understood.")
    return match.groups()
