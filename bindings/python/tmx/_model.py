"""Files, models, tokens and plans."""
from __future__ import annotations

import ctypes
import os
from ctypes import byref, c_int32, c_size_t, POINTER
from typing import Callable, NamedTuple, Optional, Sequence, Union

import numpy as np

from . import _abi
from ._abi import Compute, PatternKind, TokenFlags, Type
from ._handle import Handle, Object, Pool, default_pool, int32
from ._library import check, create, lib, path_bytes, text_of

Path = Union[str, bytes, "os.PathLike[str]"]
Text = Union[str, bytes]


def _text_bytes(text: Optional[Text], name: str) -> Optional[bytes]:
    """A C string; None stays NULL."""
    if text is None:
        return None
    raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else bytes(text)
    if b"\0" in raw:
        raise ValueError(f"{name} cannot hold a NUL byte")
    return raw


def _isa(name: str) -> int:
    isa = _abi.c_enum()
    check(lib.tmx_isa_parse, name.encode(), byref(isa))
    return isa.value


def _choice(kind, prefix: str, name: str) -> int:
    try:
        return kind[prefix + name.upper()]
    except (KeyError, AttributeError):
        known = ", ".join(repr(k.name[len(prefix):].lower()) for k in kind)
        raise ValueError(f"{name!r}: expected one of {known}") from None


def compute_of(name: str) -> int:
    return _choice(Compute, "TMX_COMPUTE_", name)


def type_of(name: str) -> int:
    return _choice(Type, "TMX_TYPE_", name)


class Pattern(NamedTuple):
    """Which (query, key) pairs a layer computes: "dense", "streaming" or "triangle", and its sizes in tokens.

    A plan's layer may also be "xattention", "flexprefill", "minference" or "s2o", whose pairs depend on the prompt: nothing is visible, pairs() is 0.
    """
    kind: str
    n_sink: int = _abi.Defaults.TMX_DEFAULT_SINK.value
    n_window: int = _abi.Defaults.TMX_DEFAULT_WINDOW.value
    n_last: int = _abi.Defaults.TMX_DEFAULT_LAST.value

    def is_visible(self, n_prompt: int, q_pos: int, k_pos: int) -> bool:
        return lib.tmx_pattern_is_visible(byref(self._struct()), int32(n_prompt, "n_prompt"), int32(q_pos, "q_pos"),
                                          int32(k_pos, "k_pos"))

    def pairs(self, n_prompt: int, q_begin: int = 0, q_end: Optional[int] = None) -> int:
        """How many pairs rows [q_begin, q_end) of a prompt see; q_end None = n_prompt."""
        return lib.tmx_pattern_pairs(byref(self._struct()), int32(n_prompt, "n_prompt"), int32(q_begin, "q_begin"),
                                     int32(n_prompt if q_end is None else q_end, "q_end"))

    def _struct(self) -> _abi.tmx_pattern:
        return _abi.tmx_pattern(_choice(PatternKind, "TMX_PATTERN_", self.kind), int32(self.n_sink, "n_sink"),
                                int32(self.n_window, "n_window"), int32(self.n_last, "n_last"))


def pattern_from(struct: _abi.tmx_pattern) -> Pattern:
    name = PatternKind(struct.kind).name[len("TMX_PATTERN_"):].lower()
    return Pattern(name, struct.n_sink, struct.n_window, struct.n_last)


class ModelInfo(NamedTuple):
    """What tmx_model_info says of a model."""
    architecture: str
    name: str
    fingerprint: str
    n_layers: int
    n_embd: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_ff: int
    n_vocab: int
    n_ctx_train: int
    rope_freq_base: float
    rms_eps: float
    n_params: int
    n_ctx_max: int
    n_loras: int
    n_merged: int
    n_window: int                      # of the model's own sliding-window layers; 0 = there are none
    window_period: int                 # layer l has no window where (l + 1) % window_period == 0; 0 = all have it
    n_experts: int                     # of a layer; 0 = none
    n_experts_used: int                # for one token
    device: str                        # "cpu" or "cuda:0": what computes, and whose memory a session takes


def _info_from(struct: _abi.tmx_model_info) -> ModelInfo:
    values = (getattr(struct, field) for field in ModelInfo._fields)
    return ModelInfo(*(text_of(v) if isinstance(v, (bytes, type(None))) else v for v in values))


class Tensor(NamedTuple):
    name: str
    type_name: str
    shape: tuple                       # slowest axis first
    n_bytes: int
    offset_bytes: int                  # from the start of its part
    is_supported: bool
    part: int                          # of a split model, from 0


class Part(NamedTuple):
    name: str                          # the path, or the end of a long one
    n_bytes: int
    n_tensors: int


class File(Object):
    """A parsed GGUF file: metadata and tensor table, every offset proven.  Says nothing about whether it can run: probe().

    A model split into several files is opened by any one of them.
    """

    def __init__(self, path: Path):
        self._handle = Handle(create(lib.tmx_file_open, path_bytes(path)), lib.tmx_file_close)

    @property
    def version(self) -> int:
        handle = self._open()
        return lib.tmx_file_version(handle.pointer)

    @property
    def n_bytes(self) -> int:
        handle = self._open()
        return lib.tmx_file_bytes(handle.pointer)

    @property
    def parts(self) -> list:
        """One Part, or more if the model is split."""
        handle = self._open()
        result, info = [], _abi.tmx_part_info()
        for i in range(lib.tmx_file_n_parts(handle.pointer)):
            check(lib.tmx_file_part, handle.pointer, i, byref(info))
            result.append(Part(text_of(info.name), info.n_bytes, info.n_tensors))
        return result

    @property
    def metadata(self) -> dict:
        """Key -> value as text, in the file's order; arrays show their type, count and first values."""
        handle = self._open()
        buffer = ctypes.create_string_buffer(4096)
        keys = (lib.tmx_file_key(handle.pointer, i) for i in range(lib.tmx_file_n_keys(handle.pointer)))
        return {text_of(key): text_of(lib.tmx_file_value_text(handle.pointer, i, buffer, len(buffer)))
                for i, key in enumerate(keys)}

    @property
    def tensors(self) -> list:
        handle = self._open()
        result, info = [], _abi.tmx_tensor_info()
        for i in range(lib.tmx_file_n_tensors(handle.pointer)):
            check(lib.tmx_file_tensor, handle.pointer, i, byref(info))
            result.append(Tensor(text_of(info.name), text_of(info.type_name), tuple(info.shape[:info.n_dims]), info.n_bytes,
                                 info.offset_bytes, info.is_supported, info.part))
        return result

    def check_tensors(self) -> None:
        """Raises Error naming the first tensor with NaN or infinity, or the first that cannot be expanded."""
        handle = self._open()
        check(lib.tmx_file_check_tensors, handle.pointer)

    def probe(self) -> ModelInfo:
        """Could Model open it?  Raises Error with the reason; name and fingerprint stay empty."""
        handle, info = self._open(), _abi.tmx_model_info()
        check(lib.tmx_model_probe_file, handle.pointer, None, byref(info))
        return _info_from(info)


def probe_file(path: Path) -> ModelInfo:
    """Could Model(path) run?  Raises Error with the reason."""
    with File(path) as file:
        return file.probe()


class Memory(NamedTuple):
    """Bytes a session will take, before it takes them; the mapped file comes on top, as page cache."""
    weight_bytes: int
    merged_bytes: int
    kv_bytes: int
    workspace_bytes: int
    total_bytes: int
    available_bytes: int               # free now; 0 = unknown


class Model(Object):
    """A GGUF model, opened: every shape proven, weights packed.

    compute   "auto" (bf16 where the CPU multiplies it, else f32), "f32", "bf16"
    isa       "auto" or a rung of the CPU: "scalar", "avx2", "avx512", "avx512bf16", "amx"
    loras     adapters to merge: paths, or (path, scale) pairs
    rope_freq_base  0 = the file's; a value also lifts the limit on n_ctx
    device    "cpu", "cuda" (the first GPU), "cuda:1", or "auto": a GPU if one can run the model
    pool      threads for opening and for the model's sessions; None = default_pool()
    warn      called with a line of text, such as for unknown extra tensors
    """

    def __init__(self, path: Path, *, compute: str = "auto", isa: str = "auto", loras: Sequence = (), rope_freq_base: float = 0,
                 device: str = "cpu", pool: Optional[Pool] = None, warn: Optional[Callable[[str], None]] = None):
        self.pool = pool if pool is not None else default_pool()
        pairs = [lora if isinstance(lora, tuple) else (lora, 1) for lora in loras]
        adapters = (_abi.tmx_lora * len(pairs))(*(_abi.tmx_lora(path_bytes(p), scale) for p, scale in pairs))
        warn_lines = _abi.warn_function((lambda _, line: warn(text_of(line))) if warn is not None else 0)
        params = _abi.tmx_model_params(compute=compute_of(compute), isa=_isa(isa), warn=warn_lines, loras=adapters,
                                       n_loras=len(pairs), rope_freq_base=rope_freq_base,
                                       device=_text_bytes(device, "device"))
        pool_handle = self.pool._open()
        with self.pool._running():
            pointer = create(lib.tmx_model_open, path_bytes(path), byref(params), pool_handle.pointer)
        self._handle = Handle(pointer, lib.tmx_model_close, pool_handle)
        self.info: ModelInfo = _info_from(lib.tmx_model_info_get(pointer).contents)
        self.compute = Compute(lib.tmx_model_compute(pointer)).name[len("TMX_COMPUTE_"):].lower()
        self.isa = text_of(lib.tmx_isa_name(lib.tmx_model_isa(pointer)))
        self.provider = text_of(lib.tmx_model_provider(pointer))
        self.device_name = text_of(lib.tmx_model_device_name(pointer))     # "NVIDIA H200"; "" on the CPU
        self.chat_format: Optional[str] = text_of(lib.tmx_chat_format(pointer)) or None

    def tokenize(self, text: Text, *, special: bool = False, bos: bool = True) -> np.ndarray:
        """Ids [n] int32 of a text or of any bytes.

        special  text such as <|im_end|> becomes the control token; leave it off for text of users
        bos      put the BOS token first if the model asks for it
        """
        raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else bytes(text)
        flags = (TokenFlags.TMX_TOKEN_SPECIAL if special else 0) | (TokenFlags.TMX_TOKEN_BOS if bos else 0)
        handle = self._open()
        return _sized(lambda *room: check(lib.tmx_tokenize, handle.pointer, raw, len(raw), flags, *room), len(raw) // 2 + 16)

    def chat(self, user: Text, *, system: Optional[Text] = None, assistant: Optional[Text] = None,
             turns: Sequence = ()) -> np.ndarray:
        """Ids [n] int32 of a conversation in the model's own format, up to where the answer goes on.

        assistant  text that the answer begins with
        turns      (user, assistant) pairs: the conversation so far, oldest first
        """
        over = (_abi.tmx_turn * len(turns))(*(_abi.tmx_turn(_text_bytes(u, "user"), _text_bytes(a, "assistant"))
                                              for u, a in turns))
        turn = _abi.tmx_chat(user=_text_bytes(user, "user"), system=_text_bytes(system, "system"),
                             assistant=_text_bytes(assistant, "assistant"), turns=over, n_turns=len(turns))
        handle = self._open()
        return _sized(lambda *room: check(lib.tmx_chat_tokenize, handle.pointer, byref(turn), *room), 256)

    def is_end(self, token: int) -> bool:
        """Does the token end an answer?"""
        handle = self._open()
        return lib.tmx_token_is_end(handle.pointer, int32(token, "token"))

    def token_bytes(self, token: int) -> bytes:
        """Bytes the token stands for; none for a control token."""
        handle, n_bytes = self._open(), c_size_t()
        at = lib.tmx_token_bytes(handle.pointer, int32(token, "token"), byref(n_bytes))
        if not at:
            raise IndexError(f"token {token}: outside the vocabulary of {self.info.n_vocab}")
        return ctypes.string_at(at, n_bytes.value)

    def token_name(self, token: int) -> str:
        """The token as the vocabulary spells it, control tokens too."""
        handle = self._open()
        name = lib.tmx_token_name(handle.pointer, int32(token, "token"))
        if name is None:
            raise IndexError(f"token {token}: outside the vocabulary of {self.info.n_vocab}")
        return text_of(name)

    def detokenizer(self) -> "Detokenizer":
        return Detokenizer(self)

    def detokenize(self, tokens) -> str:
        """The text of ids; bytes that are no character become U+FFFD."""
        stream = Detokenizer(self)
        return "".join([stream.feed(token) for token in tokens] + [stream.flush()])

    def plan(self, spec: Path = "dense") -> "Plan":
        """A plan from a spec ("dense", "triangle:16-31", "preset:NAME") or from the path of a plan file."""
        return Plan(spec, self)

    def memory(self, *, n_ctx: int = 0, n_seqs: int = 0, n_chunk: int = 0, kv_type: str = "default") -> Memory:
        """What a session with these sizes takes."""
        handle, memory = self._open(), _abi.tmx_memory()
        params = _abi.tmx_session_params(n_ctx=int32(n_ctx, "n_ctx"), n_seqs=int32(n_seqs, "n_seqs"),
                                         n_chunk=int32(n_chunk, "n_chunk"), kv_type=type_of(kv_type))
        check(lib.tmx_memory_plan, lib.tmx_model_info_get(handle.pointer), compute_of(self.compute), _isa(self.isa),
              byref(params), self.pool.n_threads, byref(memory))
        return Memory(*(getattr(memory, field) for field in Memory._fields))


def _sized(write, n: int) -> np.ndarray:
    """Calls write(ids, cap, &n_ids, ...) with room for n ids, and again if they were more."""
    n_ids = c_size_t()
    while True:
        ids = np.empty(n, np.int32)
        write(ids.ctypes.data_as(POINTER(c_int32)), n, byref(n_ids))
        if n_ids.value <= n:
            return ids[:n_ids.value].copy()
        n = n_ids.value


class Detokenizer:
    """A stream of ids into text that never ends on half a character: incomplete bytes wait for the next token."""

    def __init__(self, model: Model):
        self._model_handle = model._open()
        self._state = _abi.tmx_detokenizer()

    def feed(self, token: int) -> str:
        token = int32(token, "token")
        n_bytes, n_written = c_size_t(), c_size_t()
        lib.tmx_token_bytes(self._model_handle.pointer, token, byref(n_bytes))
        buffer = ctypes.create_string_buffer(2 * n_bytes.value + 16)
        check(lib.tmx_detokenize, self._model_handle.pointer, byref(self._state), token, buffer, len(buffer), byref(n_written))
        return buffer.raw[:n_written.value].decode("utf-8", "replace")

    def flush(self) -> str:
        """What is left when no token follows: U+FFFD for bytes that never became a character."""
        return self.feed(-1)


class Plan(Object):
    """A pattern for every layer of a model.

    spec   "dense", "triangle" (all layers), "triangle:16-31", "triangle:5,7,10,15-35", "streaming:...", "preset:NAME", or the
           path of a plan file
    model  a Model, which checks that the plan is for it
    """

    def __init__(self, spec: Path, model: Model):
        handle = model._open()
        self._handle = Handle(create(lib.tmx_plan_parse, path_bytes(spec), lib.tmx_model_info_get(handle.pointer)),
                              lib.tmx_plan_free)

    @classmethod
    def parse(cls, spec: str, model: Model) -> "Plan":
        return cls(spec, model)

    @classmethod
    def load(cls, path: Path, model: Model) -> "Plan":
        """From a file, even if its name is a spec's."""
        raw = path_bytes(path)
        return cls(raw if b"/" in raw else b"./" + raw, model)

    def save(self, path: Path) -> None:
        """Writes the plan file, atomically."""
        handle = self._open()
        check(lib.tmx_plan_save, handle.pointer, path_bytes(path))

    @property
    def layers(self) -> list:
        """[n_layers] Pattern"""
        handle = self._open()
        n_layers = lib.tmx_plan_n_layers(handle.pointer)
        return [pattern_from(lib.tmx_plan_layer(handle.pointer, i).contents) for i in range(n_layers)]

    def own_window(self, layer: int) -> int:
        """The window of a layer that has one of the model's own, whatever the plan; else 0."""
        handle = self._open()
        return lib.tmx_plan_own_window(handle.pointer, int32(layer, "layer"))

    def set_sizes(self, n_sink: int = -1, n_window: int = -1, n_last: int = -1) -> None:
        """Sizes of every layer that is not dense; -1 keeps one."""
        handle = self._open()
        check(lib.tmx_plan_set_sizes, handle.pointer, int32(n_sink, "n_sink"), int32(n_window, "n_window"),
              int32(n_last, "n_last"))

    @property
    def note(self) -> str:
        """How the plan was chosen."""
        handle = self._open()
        return text_of(lib.tmx_plan_note(handle.pointer))

    @note.setter
    def note(self, text: str) -> None:
        handle = self._open()
        check(lib.tmx_plan_set_note, handle.pointer, _text_bytes(text, "note"))

    @property
    def min_tokens(self) -> int:
        """Shorter prompts run dense; 0 = none."""
        handle = self._open()
        return lib.tmx_plan_min_tokens(handle.pointer)

    @min_tokens.setter
    def min_tokens(self, n: int) -> None:
        handle = self._open()
        check(lib.tmx_plan_set_min_tokens, handle.pointer, int32(n, "min_tokens"))

    @property
    def estimate_rows(self) -> int:
        """Tokens that flexprefill and minference layers estimate together; 0 = the whole prompt, or there are no such layers."""
        handle = self._open()
        return lib.tmx_plan_estimate_rows(handle.pointer)

    @estimate_rows.setter
    def estimate_rows(self, n: int) -> None:
        handle = self._open()
        check(lib.tmx_plan_set_estimate_rows, handle.pointer, int32(n, "estimate_rows"))

    def __str__(self) -> str:
        handle, buffer = self._open(), ctypes.create_string_buffer(4096)
        return text_of(lib.tmx_plan_text(handle.pointer, buffer, len(buffer)))


def presets() -> list:
    """Names for "preset:NAME"."""
    return [text_of(lib.tmx_preset_name(i)) for i in range(lib.tmx_preset_count())]
