"""Sessions: prefill, decode, sampling."""
from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from ctypes import POINTER, byref, c_float, c_int32
from typing import Callable, Iterator, NamedTuple, Optional, Sequence, Union

import numpy as np

from . import _abi
from ._handle import Handle, Object, int32
from ._library import check, create, lib
from ._model import Model, Plan, type_of


class Timings(NamedTuple):
    """Wall milliseconds since the session began or was reset; of prefill unless the name says decode."""
    prefill_ms: float
    matmul_ms: float
    attention_ms: float
    rest_ms: float
    decode_ms: float
    n_prefill_tokens: int
    n_decode_tokens: int
    estimate_ms: float                 # part of attention_ms: dynamic layers finding their pairs


class Agreement(NamedTuple):
    kl: float                          # KL(softmax(a) || softmax(b)), natural log
    max_abs_diff: float                # of the logits
    top_a: int                         # arg-max of each; ties: lowest id
    top_b: int
    margin_a: float                    # a's best minus second best logit


def compare_logits(a, b) -> Agreement:
    """How far logits b [n] are from a [n]."""
    a, b = (np.ascontiguousarray(x, np.float32) for x in (a, b))
    if a.ndim != 1 or a.shape != b.shape or a.size == 0:
        raise ValueError(f"logits of shapes {a.shape} and {b.shape}: expected two rows of one length")
    result = _abi.tmx_agreement()
    lib.tmx_logits_compare(_floats(a), _floats(b), a.size, byref(result))
    return Agreement(*(getattr(result, field) for field in Agreement._fields))


class Sampler(Object):
    """Chooses tokens from logits.  Without arguments: greedy, ties to the lowest id.

    temperature 0 = greedy; top_k, top_p, min_p, repeat_penalty 0 = off; repeat_last_n 0 = 64
    """

    def __init__(self, model: Union[Model, "Session"], *, temperature: float = 0, top_k: int = 0, top_p: float = 0, min_p: float = 0,
                 repeat_penalty: float = 0, repeat_last_n: int = 0, seed: int = 0):
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed {seed}: outside 0..2^64-1")
        params = _abi.tmx_sampler_params(temperature=temperature, top_k=int32(top_k, "top_k"), top_p=top_p, min_p=min_p,
                                         repeat_penalty=repeat_penalty, repeat_last_n=int32(repeat_last_n, "repeat_last_n"),
                                         seed=seed)
        self._n_vocab = model.info.n_vocab
        self._handle = Handle(create(lib.tmx_sampler_create, byref(params), self._n_vocab), lib.tmx_sampler_free)

    def accept(self, token: int) -> None:
        """Tells it what was prompted or generated, for the repeat penalty."""
        handle = self._open()
        lib.tmx_sampler_accept(handle.pointer, int32(token, "token"))

    def next(self, logits) -> int:
        """A token id from logits [n_vocab], all finite."""
        handle, row = self._open(), np.ascontiguousarray(logits, np.float32)
        if row.shape != (self._n_vocab,):
            raise ValueError(f"logits of shape {row.shape}: expected ({self._n_vocab},)")
        return lib.tmx_sampler_next(handle.pointer, _floats(row))


class Session(Object):
    """The KV cache and workspace of one or more sequences of tokens.  Takes all its memory when it is made.

    plan      None = dense
    n_ctx     tokens a sequence may hold; 0 = the model's context
    n_seqs    sequences; 0 = 1
    n_chunk   prompt rows worked on at once; 0 = a default; never changes a result
    kv_type   "default" (as the model computes), "f32", "bf16"
    progress  called with (n_done, n_total) during prefill; returning False stops it (Error, TMX_E_CANCELLED), and an exception
              stops it and is raised again.  Ctrl-C stops a prefill with or without it.
    """

    def __init__(self, model: Model, plan: Optional[Plan] = None, *, n_ctx: int = 0, n_seqs: int = 0, n_chunk: int = 0,
                 kv_type: str = "default", progress: Optional[Callable[[int, int], Optional[bool]]] = None):
        model_handle, self._pool = model._open(), model.pool
        self._model_handle = model_handle      # generate() asks it which tokens end an answer
        pool_handle = self._pool._open()
        self.info = model.info
        self._raised: list = []
        self._callback = _abi.progress_function(_stopper(progress, self._raised))
        params = _abi.tmx_session_params(n_ctx=int32(n_ctx, "n_ctx"), n_chunk=int32(n_chunk, "n_chunk"),
                                         n_seqs=int32(n_seqs, "n_seqs"), kv_type=type_of(kv_type), progress=self._callback)
        plan_handle = plan._open() if plan is not None else None
        pointer = create(lib.tmx_session_create, model_handle.pointer, plan_handle.pointer if plan_handle else None,
                         pool_handle.pointer, byref(params))
        self._handle = Handle(pointer, lib.tmx_session_free, model_handle, pool_handle)

    def prefill(self, prompts: Sequence, seqs: Optional[Sequence[int]] = None) -> np.ndarray:
        """Runs prompts through all layers, as one batch, and appends them to their sequences.

        prompts  a list of prompts, each [n_tokens] ids: the whole prompt, or the whole new turn
        seqs     the sequence of each prompt; None = 0, 1, 2, ...
        Returns logits [len(prompts)][n_vocab] f32, after the last token of each.
        """
        rows = [_ids(prompt) for prompt in prompts]
        numbers = [int32(seq, "seq") for seq in (range(len(rows)) if seqs is None else seqs)]
        if len(numbers) != len(rows):
            raise ValueError(f"{len(rows)} prompts, but {len(numbers)} seqs")
        logits = np.empty((len(rows), self.info.n_vocab), np.float32)
        structs = (_abi.tmx_prompt * len(rows))(
            *(_abi.tmx_prompt(ids.ctypes.data_as(POINTER(c_int32)), ids.size, seq, _floats(logits[i]))
              for i, (ids, seq) in enumerate(zip(rows, numbers))))
        with _callbacks(self._raised):
            self._run(lib.tmx_prefill, structs, len(rows))
        return logits

    def decode(self, token: int, seq: int = 0) -> np.ndarray:
        """One more token of a sequence that was prefilled; logits [n_vocab] f32."""
        logits = np.empty(self.info.n_vocab, np.float32)
        self._run(lib.tmx_decode, int32(seq, "seq"), int32(token, "token"), _floats(logits))
        return logits

    def decode_next(self, token: int, sampler: Sampler, seq: int = 0) -> int:
        """sampler.next(decode(token, seq)); on a GPU the logits stay there, unless the sampler has a repeat penalty."""
        chosen = c_int32()
        self._run(lib.tmx_decode_next, int32(seq, "seq"), int32(token, "token"), sampler._open().pointer, byref(chosen))
        return chosen.value

    def generate(self, prompt, n_tokens: int, *, sampler: Optional[Sampler] = None, seq: int = 0) -> Iterator[int]:
        """Prefills a prompt [n] and yields up to n_tokens ids, until the model ends its answer (that token is not yielded).

        sampler  None = greedy; another is told the prompt first, for its repeat penalty
        The prefill runs when the first id is asked for.  Afterwards the sequence holds the prompt and the ids yielded; when
        n_tokens cut the answer, all of them but the last.
        """
        ids = _ids(prompt)
        if sampler is None:
            sampler = Sampler(self)
        else:
            for token in ids.tolist():
                sampler.accept(token)
        logits = self.prefill([ids], [seq])[0]
        for i in range(n_tokens):
            token = sampler.next(logits) if i == 0 else self.decode_next(token, sampler, seq)
            if lib.tmx_token_is_end(self._model_handle.pointer, token):
                return
            sampler.accept(token)
            yield token

    def n_past(self, seq: int = 0) -> int:
        """Tokens the sequence holds."""
        handle = self._open()
        n = lib.tmx_session_n_past(handle.pointer, int32(seq, "seq"))
        if n < 0:
            raise IndexError(f"sequence {seq}: the session has no such one")
        return n

    def n_reusable(self, n_prompt: int, seq: int = 0) -> int:
        """A new prompt of n_prompt tokens begins with what the sequence holds: how many of its first tokens need no prefill?

        Rewind to this many, or to where the tokens part, keep at least one for prefill, and it leaves what a prefill of the
        whole prompt would, to the bit.
        """
        handle = self._open()
        n = lib.tmx_session_n_reusable(handle.pointer, int32(seq, "seq"), int32(n_prompt, "n_prompt"))
        if n < 0:
            raise IndexError(f"sequence {seq}: the session has no such one")
        return n

    @property
    def n_ctx(self) -> int:
        handle = self._open()
        return lib.tmx_session_n_ctx(handle.pointer)

    def rewind(self, n_past: int, seq: int = 0) -> None:
        """Forgets the tokens of a sequence from position n_past on; what stands before keeps its bits."""
        handle = self._open()
        with self._pool._running():
            check(lib.tmx_session_rewind, handle.pointer, int32(seq, "seq"), int32(n_past, "n_past"))

    def reset(self) -> None:
        """Forgets all tokens and timings, and keeps the memory."""
        handle = self._open()
        with self._pool._running():
            lib.tmx_session_reset(handle.pointer)

    def set_plan(self, plan: Plan) -> None:
        """Another plan, for a session that holds no tokens."""
        handle, plan_handle = self._open(), plan._open()
        with self._pool._running():
            check(lib.tmx_session_set_plan, handle.pointer, plan_handle.pointer)

    @property
    def timings(self) -> Timings:
        handle, timings = self._open(), _abi.tmx_timings()
        lib.tmx_session_timings(handle.pointer, byref(timings))
        return Timings(*(getattr(timings, field) for field in Timings._fields))

    def layer_attention_ms(self, layer: int) -> float:
        """Prefill's attention in one layer."""
        handle = self._open()
        return lib.tmx_session_layer_attention_ms(handle.pointer, int32(layer, "layer"))

    def layer_density(self, layer: int) -> float:
        """Share of the causal query-key pairs that prefill attended to in one layer, 0..1; 0 if there were none."""
        handle = self._open()
        return lib.tmx_session_layer_density(handle.pointer, int32(layer, "layer"))

    def _run(self, function, *arguments) -> None:
        handle = self._open()
        with self._pool._running():
            check(function, handle.pointer, *arguments)


@contextmanager
def _callbacks(raised: list):
    """While C runs with a callback: what is raised in Python meanwhile comes out at the end.

    Ctrl-C needs help: Python calls the signal's handler at the first instruction of the callback, where nothing can catch what it
    raises.  So the handler is called by one that can.
    """
    raised.clear()
    handler = signal.getsignal(signal.SIGINT)
    is_ours = threading.current_thread() is threading.main_thread() and callable(handler)

    def defer(signum, frame):
        try:
            handler(signum, frame)
        except BaseException as exception:
            raised.append(exception)

    if is_ours:
        signal.signal(signal.SIGINT, defer)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, handler)
        if raised:
            exception = raised.pop(0)
            raised.clear()             # a traceback holds its frames, and they hold the session
            raise exception from None


def _stopper(progress, raised: list):
    """The C callback.  An exception would vanish in C: it waits in `raised`, and no more work is done."""
    def report(_, state):
        try:
            if raised:
                return False
            return progress is None or progress(state.contents.n_done, state.contents.n_total) is not False
        except BaseException as exception:
            raised.append(exception)
            return False
    return report


def _ids(tokens) -> np.ndarray:
    """[n] int32, contiguous; refuses what is not a row of integers, and never wraps."""
    given = np.asarray(tokens)
    if given.ndim != 1 or (given.size > 0 and given.dtype.kind not in "iu"):
        raise TypeError(f"a prompt is a row of token ids, found an array of shape {given.shape} and type {given.dtype}; "
                        "prefill takes a list of prompts")
    if given.size > 0 and (given.max() > 2**31 - 1 or given.min() < -2**31):
        raise ValueError("a token id is not a 32-bit integer")
    return np.ascontiguousarray(given, np.int32)


def _floats(row: np.ndarray):
    return row.ctypes.data_as(POINTER(c_float))
