"""Objects of the library in Python's hands: freed once, children before parents, whatever order Python forgets them in."""
import operator
import os
import threading
import weakref
from contextlib import contextmanager

from ._library import create, lib


def _release(free, pointer, pid, parents):
    if os.getpid() == pid:             # in a forked child the threads behind the objects do not exist
        free(pointer)


class Handle:
    """An address and how to free it.

    The finalizer holds the parents, and Python holds the finalizer: a parent is freed after its last child even when all
    of them are found in one cycle, and at exit the youngest goes first.
    """
    __slots__ = ("pointer", "__weakref__")

    def __init__(self, pointer, free, *parents):
        self.pointer = pointer
        weakref.finalize(self, _release, free, pointer, os.getpid(), parents)


class Object:
    """What all classes share: close(), `with`, and a refusal to work after close().

    close() lets go of the object; its memory is freed as soon as nothing that was made from it is left.
    """
    _handle = None

    def close(self) -> None:
        self._handle = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _open(self) -> Handle:
        handle = self._handle
        if handle is None:
            raise ValueError(f"this {type(self).__name__} is closed")
        return handle


class Pool(Object):
    """Worker threads.  n_threads counts the calling thread; 0 = one per core this process may use.

    Work on one pool runs one call at a time; calls from other Python threads wait.
    """

    def __init__(self, n_threads: int = 0):
        self._handle = Handle(create(lib.tmx_pool_create, int32(n_threads, "n_threads")), lib.tmx_pool_free)
        self._lock = threading.Lock()
        self._owner = None

    @property
    def n_threads(self) -> int:
        handle = self._open()
        return lib.tmx_pool_n_threads(handle.pointer)

    @contextmanager
    def _running(self):
        if self._owner == threading.get_ident():
            raise RuntimeError("a callback cannot start work on the pool that is running it")
        with self._lock:
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = None


_default = None
_default_lock = threading.Lock()


def default_pool() -> Pool:
    """The pool of everything that names none: one per process, a thread per core."""
    global _default
    with _default_lock:
        if _default is None:
            _default = Pool()
        return _default


def _forget_default():
    global _default, _default_lock
    _default, _default_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_default)


def int32(value, name: str) -> int:
    """An integer that ctypes will not wrap."""
    number = operator.index(value)
    if not -2**31 <= number < 2**31:
        raise ValueError(f"{name} {number}: not a 32-bit integer")
    return number
