"""The attention operator on NumPy arrays."""
from __future__ import annotations

from ctypes import POINTER, byref, c_float
from typing import Optional, Union

import numpy as np

from . import _abi
from ._abi import Type
from ._handle import Pool, default_pool, int32
from ._library import check, lib
from ._model import Pattern, _isa


def attention(q, k, v, pattern: Union[str, Pattern] = "dense", *, q_begin: int = 0, n_prompt: Optional[int] = None,
              scale: float = 0, out: Optional[np.ndarray] = None, return_lse: bool = False, isa: str = "auto",
              pool: Optional[Pool] = None):
    """Exact softmax attention over the pairs that a pattern shows: out[i][h] = softmax(scale q[i][h] . K[:, g]) V[:, g],
    g = h // (n_heads // n_kv_heads); a row that sees nothing gives 0.

    q         [n_q][n_heads][head_dim]; row 0 is position q_begin
    k, v      [q_begin + n_q][n_kv_heads][head_dim]; row 0 is position 0
    pattern   "dense", "streaming", "triangle" with default sizes, or a Pattern
    n_prompt  final length of the sequence, from which a triangle's last rows count; None = q_begin + n_q
    scale     0 = 1 / sqrt(head_dim)
    out       [n_q][n_heads][head_dim] of q's type, written; None = a new array
    pool      None = default_pool()
    Returns out, or (out, lse) with lse [n_q][n_heads] f32: natural log of each row's softmax denominator.

    Types: float32, or bf16 as ml_dtypes.bfloat16 or as its bits in uint16; q and k, v may differ.  Rows and heads may be
    strided views; elements of a head must lie side by side, or are copied.
    """
    q, k, v = (_rows(x, name) for x, name in ((q, "q"), (k, "k"), (v, "v")))
    n_q, n_heads, head_dim = q.shape
    q_begin = int32(q_begin, "q_begin")
    expected = (q_begin + n_q, k.shape[1], head_dim)
    if k.shape != expected or v.shape != expected or k.dtype != v.dtype:
        raise ValueError(f"k {k.shape} {k.dtype}, v {v.shape} {v.dtype}: expected both {expected}, [q_begin + n_q][n_kv_heads]"
                         "[head_dim], of one type")
    if out is None:
        out = np.empty(q.shape, q.dtype)
    elif out.shape != q.shape or out.dtype != q.dtype or not _is_usable(out) or not out.flags.writeable:
        raise ValueError(f"out {out.shape} {out.dtype}: expected {q.shape} {q.dtype}, writeable, heads contiguous")
    elif any(np.shares_memory(out, x) for x in (q, k, v)):
        raise ValueError("out overlaps q, k or v")
    lse = np.empty((n_q, n_heads), np.float32) if return_lse else None
    seq = _abi.tmx_attention_seq(q=q.ctypes.data, k=k.ctypes.data, v=v.ctypes.data, out=out.ctypes.data,
                                 lse=lse.ctypes.data_as(POINTER(c_float)) if return_lse else None, q_begin=q_begin, n_q=n_q,
                                 n_prompt=q_begin + n_q if n_prompt is None else int32(n_prompt, "n_prompt"))
    params = _abi.tmx_attention_params(
        q_type=_type(q), kv_type=_type(k), n_heads=n_heads, n_kv_heads=k.shape[1], head_dim=head_dim, scale=scale,
        **_strides("q", q), **_strides("k", k), **_strides("v", v), **_strides("out", out),
        pattern=(Pattern(pattern) if isinstance(pattern, str) else pattern)._struct(), seqs=(_abi.tmx_attention_seq * 1)(seq),
        n_seqs=1, isa=_isa(isa))
    pool = pool if pool is not None else default_pool()
    pool_handle = pool._open()
    with pool._running():
        check(lib.tmx_attention, byref(params), pool_handle.pointer)
    return (out, lse) if return_lse else out


def _is_usable(x: np.ndarray) -> bool:
    """Heads contiguous, other strides forward and in whole elements, addresses aligned?"""
    return (x.flags.aligned and x.strides[2] == x.itemsize and
            all(n == 1 or (s > 0 and s % x.itemsize == 0) for n, s in zip(x.shape, x.strides)))


def _rows(x, name: str) -> np.ndarray:
    x = np.asarray(x)
    if x.ndim != 3 or x.size == 0:
        raise ValueError(f"{name} {x.shape}: expected [positions][heads][head_dim], none of them 0")
    if x.dtype != np.float32 and x.dtype != np.uint16 and x.dtype.name != "bfloat16":
        raise TypeError(f"{name} {x.dtype}: expected float32, bfloat16, or bf16 bits as uint16")
    return x if _is_usable(x) else np.ascontiguousarray(x)


def _type(x: np.ndarray) -> int:
    return Type.TMX_TYPE_F32 if x.dtype == np.float32 else Type.TMX_TYPE_BF16


def _strides(name: str, x: np.ndarray) -> dict:
    """In elements; of an axis with one entry, what a contiguous array has."""
    head = x.strides[1] // x.itemsize if x.shape[1] > 1 else x.shape[2]
    position = x.strides[0] // x.itemsize if x.shape[0] > 1 else x.shape[1] * head
    return {f"{name}_pos_stride": position, f"{name}_head_stride": head}
