"""_abi.py against tmx.h: a C program made from it compares sizes, offsets and values, and calls every function."""
import ctypes
import os
import re
import subprocess
import tempfile
import unittest
from pathlib import Path

import tmx
from tmx import _abi

INCLUDE = Path(os.environ["TMX_SOURCE"]) / "include"
# What Python does not offer: the gradient probe and the search for heads, models made of random numbers, the GPU operator on device
# pointers, curves of plans, scratch of one's own.
UNBOUND = re.compile(r"tmx_(probe_|model_open_random|gpu_|minference_search|plan_save_heads|plan_curve|plan_set_curve|status_name|"
                     r"pattern_name|attention_scratch_bytes)")

C_TYPES = {ctypes.c_bool: "bool", ctypes.c_char: "char", ctypes.c_char_p: "char *", ctypes.c_double: "double",
           ctypes.c_float: "float", ctypes.c_int32: "int32_t", ctypes.c_int64: "int64_t", ctypes.c_size_t: "size_t",
           ctypes.c_uint32: "uint32_t", ctypes.c_uint64: "uint64_t", ctypes.c_void_p: "void *", None: "void"}


def c_type(t):
    if t in C_TYPES:                   # c_size_t and c_uint64 are one type to ctypes, and on the machines we run on
        return C_TYPES[t]
    if issubclass(t, ctypes.Structure):
        return t.__name__
    return "void **" if t._type_ is ctypes.c_void_p else f"{c_type(t._type_)} *"


def c_argument(t):
    if t is ctypes.c_void_p or (hasattr(t, "_type_") and t._type_ is ctypes.c_void_p):
        return "(void *)some_pointer"  # an opaque type: any pointer will do
    return f"*({c_type(t)} *)some_pointer"


def program():
    lines = ["#include <stdio.h>", "#include <stddef.h>", "#include <tmx.h>", "extern void *some_pointer;"]
    for name, (returns, takes) in _abi.FUNCTIONS.items():
        call = f"{name}({', '.join(map(c_argument, takes))})"
        keep = f"const {c_type(returns)} r = {call}; (void)r;" if returns is not None else f"{call};"
        lines.append(f"void check_{name}(void); void check_{name}(void) {{ {keep} }}")
    lines.append("int main(void) {")
    for struct in _abi.STRUCTS:
        lines.append(f'printf("{struct.__name__} %zu\\n", sizeof({struct.__name__}));')
        for field, *_ in struct._fields_:
            where = f"{struct.__name__}, {field}"
            size = f"sizeof((({struct.__name__} *)0)->{field})"
            lines.append(f'printf("{struct.__name__}.{field} %zu %zu\\n", offsetof({where}), {size});')
    for enum in _abi.ENUMS:
        lines += [f'printf("{member.name} %d\\n", (int){member.name});' for member in enum]
    return "\n".join(lines + ["return 0; }", "void *some_pointer;"])


def expected():
    lines = []
    for struct in _abi.STRUCTS:
        lines.append(f"{struct.__name__} {ctypes.sizeof(struct)}")
        for field, *_ in struct._fields_:
            at = getattr(struct, field)
            lines.append(f"{struct.__name__}.{field} {at.offset} {at.size}")
    for enum in _abi.ENUMS:
        lines += [f"{member.name} {member.value}" for member in enum]
    return lines


def field_names(header, struct):
    """Names in `typedef struct NAME { ... } NAME;`, in order."""
    body = re.search(r"typedef struct " + struct + r" \{(.*?)\} " + struct + ";", header, re.S).group(1)
    names = []
    for declaration in re.sub(r"/\*.*?\*/", "", body, flags=re.S).split(";"):
        function = re.match(r"\s*\w+ \(\*(\w+)\)\(", declaration)
        if function:
            names.append(function.group(1))
        elif declaration.strip():
            names += [re.search(r"(\w+)(\[\w+\])?\s*$", part).group(1) for part in declaration.split(",")]
    return names


class Abi(unittest.TestCase):
    header = (INCLUDE / "tmx.h").read_text()

    def test_layouts_values_and_prototypes(self):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "abi.c"
            source.write_text(program())
            flags = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Wsign-conversion", "-Werror", f"-I{INCLUDE}"]
            checked = subprocess.run(["cc", *flags, "-c", str(source), "-o", f"{folder}/abi.o"], capture_output=True, text=True)
            self.assertEqual(checked.returncode, 0, checked.stderr)
            # The calls are for the compiler; without them, nothing needs the library.
            only_main = re.sub(r"^void check_.*\n", "", program(), flags=re.M)
            source.write_text(only_main)
            subprocess.run(["cc", f"-I{INCLUDE}", str(source), "-o", f"{folder}/abi"], check=True)
            found = subprocess.run([f"{folder}/abi"], capture_output=True, text=True, check=True).stdout.splitlines()
        self.assertEqual(found, expected())

    def test_version(self):
        self.assertIn(f'#define TMX_VERSION "{tmx.__version__}"', self.header)
        self.assertEqual(tmx.library_version(), tmx.__version__)

    def test_no_field_is_missing(self):
        for struct in _abi.STRUCTS:
            self.assertEqual(field_names(self.header, struct.__name__), [name for name, *_ in struct._fields_], struct.__name__)

    def test_no_enum_value_is_missing(self):
        text = re.sub(r"/\*.*?\*/", "", self.header, flags=re.S)
        for enum in _abi.ENUMS:
            first = next(iter(enum)).name
            body = re.search(r"enum (?:\w+ )?\{([^}]*\b" + first + r"\b[^}]*)\}", text).group(1)
            self.assertEqual(re.findall(r"TMX_\w+", body), [member.name for member in enum])

    def test_every_function_is_bound_or_left_out_on_purpose(self):
        declared = set(re.findall(r"^TMX_API [^(]*?(tmx_\w+)\(", self.header, re.M))
        missing = {name for name in declared - set(_abi.FUNCTIONS) if not UNBOUND.match(name)}
        self.assertEqual(missing, set())
        self.assertEqual(set(_abi.FUNCTIONS) - declared, set())
