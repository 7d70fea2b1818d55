"""Finds libtmx, gives its functions their types, and turns a status into an exception."""
import ctypes
import os
from pathlib import Path
from typing import Union

from . import _abi
from ._abi import Status
from ._version import __version__

NAME = "libtmx.so.0"


class Error(Exception):
    """A call of libtmx failed.  str() is the library's one line: what, where, found, expected."""

    def __init__(self, status: Union[Status, int], text: str):
        super().__init__(text)
        self.status = status

    def __reduce__(self):
        return Error, (self.status, str(self))


def text_of(value) -> str:
    return "" if value is None else value.decode("utf-8", "replace")


def _load():
    given = os.environ.get("TMX_LIBRARY")
    beside = Path(__file__).with_name(NAME)
    tried = []
    for where, path in [("TMX_LIBRARY", given)] if given else [("beside the package", str(beside)), ("system", NAME)]:
        try:
            library = ctypes.CDLL(path)
            library.tmx_version.restype = ctypes.c_char_p
            version = library.tmx_version().decode()
        except (OSError, AttributeError) as reason:
            tried.append(f"{path} ({where}): {reason}")
            continue
        if version.split(".")[:2] != __version__.split(".")[:2]:
            raise ImportError(f"{path} ({where}) is version {version}, these bindings are for {__version__}")
        return library
    raise ImportError("libtmx was not found; looked for " + "; ".join(tried) +
                      ".  Install trianglemix, or let the environment variable TMX_LIBRARY name a " + NAME)


lib = _load()
for _name, (_returns, _takes) in _abi.FUNCTIONS.items():
    try:
        _function = getattr(lib, _name)
    except AttributeError:
        raise ImportError(f"libtmx {text_of(lib.tmx_version())} has no {_name}: older than these bindings") from None
    _function.restype, _function.argtypes = _returns, _takes


def check(function, *arguments) -> None:
    """Calls a function whose last argument is tmx_error *; raises Error unless it returns TMX_OK."""
    err = _abi.tmx_error()
    status = function(*arguments, ctypes.byref(err))
    if status != 0:
        known = status in Status._value2member_map_        # statuses are append-only: a later library may have one more
        raise Error(Status(status) if known else status, text_of(err.text))


def create(function, *arguments) -> int:
    """As check, for a function whose first argument receives a new object; returns its address."""
    pointer = ctypes.c_void_p()
    check(function, ctypes.byref(pointer), *arguments)
    return pointer.value


def path_bytes(path) -> bytes:
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise ValueError("a path cannot hold a NUL byte")
    return raw
