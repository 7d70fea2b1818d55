"""tmx.h in ctypes: structs, enums and functions, in the header's order and with its names.

tests/test_abi.py has a C compiler compare all of it with the header.
"""
from ctypes import (CFUNCTYPE, POINTER, Structure, c_bool, c_char, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t,
                    c_ubyte, c_uint32, c_uint64, c_void_p)
from enum import IntEnum

c_enum = c_uint32                  # no enum of the header has a negative value: the compiler makes it unsigned


class Status(IntEnum):
    """Why a call failed; the header says when each can happen."""
    TMX_OK = 0
    TMX_E_ARG = 1
    TMX_E_IO = 2
    TMX_E_FORMAT = 3
    TMX_E_UNSUPPORTED = 4
    TMX_E_MEMORY = 5
    TMX_E_FULL = 6
    TMX_E_NUMERIC = 7
    TMX_E_CANCELLED = 8
    TMX_E_DEVICE = 9


class Type(IntEnum):
    TMX_TYPE_DEFAULT = 0
    TMX_TYPE_F32 = 1
    TMX_TYPE_BF16 = 2
    TMX_TYPE_F16 = 3


class Compute(IntEnum):
    TMX_COMPUTE_AUTO = 0
    TMX_COMPUTE_F32 = 1
    TMX_COMPUTE_BF16 = 2


class PatternKind(IntEnum):
    TMX_PATTERN_DENSE = 0
    TMX_PATTERN_STREAMING = 1
    TMX_PATTERN_TRIANGLE = 2
    TMX_PATTERN_XATTENTION = 3
    TMX_PATTERN_FLEXPREFILL = 4
    TMX_PATTERN_MINFERENCE = 5
    TMX_PATTERN_S2O = 6


class TokenFlags(IntEnum):
    TMX_TOKEN_PLAIN = 0
    TMX_TOKEN_SPECIAL = 1
    TMX_TOKEN_BOS = 2


class Watch(IntEnum):
    TMX_WATCH_TILE = 128


class Defaults(IntEnum):
    TMX_DEFAULT_SINK = 8
    TMX_DEFAULT_WINDOW = 512
    TMX_DEFAULT_LAST = 128


ENUMS = [Status, Type, Compute, PatternKind, TokenFlags, Defaults, Watch]


class tmx_error(Structure):
    _fields_ = [("code", c_enum), ("text", c_char * 256)]


class tmx_pattern(Structure):
    _fields_ = [("kind", c_enum), ("n_sink", c_int32), ("n_window", c_int32), ("n_last", c_int32)]


class tmx_tensor_info(Structure):
    _fields_ = [("name", c_char_p), ("type_name", c_char_p), ("n_dims", c_int32), ("shape", c_int64 * 4),
                ("n_bytes", c_uint64), ("offset_bytes", c_uint64), ("is_supported", c_bool), ("part", c_int32)]


class tmx_part_info(Structure):
    _fields_ = [("name", c_char_p), ("n_bytes", c_uint64), ("n_tensors", c_int32)]


class tmx_model_info(Structure):
    _fields_ = [("architecture", c_char_p), ("name", c_char_p), ("fingerprint", c_char_p), ("n_layers", c_int32),
                ("n_embd", c_int32), ("n_heads", c_int32), ("n_kv_heads", c_int32), ("head_dim", c_int32), ("n_ff", c_int32),
                ("n_vocab", c_int32), ("n_ctx_train", c_int32), ("rope_freq_base", c_float), ("rms_eps", c_float),
                ("n_params", c_uint64), ("n_ctx_max", c_int32), ("n_loras", c_int32), ("n_merged", c_uint64),
                ("n_window", c_int32), ("window_period", c_int32), ("n_experts", c_int32), ("n_experts_used", c_int32),
                ("device", c_char_p)]


class tmx_lora(Structure):
    _fields_ = [("path", c_char_p), ("scale", c_float)]


warn_function = CFUNCTYPE(None, c_void_p, c_char_p)


class tmx_model_params(Structure):
    _fields_ = [("compute", c_enum), ("isa", c_enum), ("warn", warn_function), ("warn_ctx", c_void_p),
                ("loras", POINTER(tmx_lora)), ("n_loras", c_int32), ("rope_freq_base", c_float), ("device", c_char_p)]


class tmx_turn(Structure):
    _fields_ = [("user", c_char_p), ("assistant", c_char_p)]


class tmx_chat(Structure):
    _fields_ = [("system", c_char_p), ("user", c_char_p), ("assistant", c_char_p), ("turns", POINTER(tmx_turn)),
                ("n_turns", c_int32)]


class tmx_detokenizer(Structure):
    _fields_ = [("pending", c_ubyte * 4), ("n_pending", c_int32)]


class tmx_progress(Structure):
    _fields_ = [("n_done", c_int64), ("n_total", c_int64)]


progress_function = CFUNCTYPE(c_bool, c_void_p, POINTER(tmx_progress))


class tmx_session_params(Structure):
    _fields_ = [("n_ctx", c_int32), ("n_chunk", c_int32), ("n_seqs", c_int32), ("kv_type", c_enum),
                ("progress", progress_function), ("progress_ctx", c_void_p), ("plan", c_void_p)]


class tmx_memory(Structure):
    _fields_ = [("weight_bytes", c_uint64), ("merged_bytes", c_uint64), ("kv_bytes", c_uint64), ("workspace_bytes", c_uint64),
                ("total_bytes", c_uint64), ("available_bytes", c_uint64)]


class tmx_prompt(Structure):
    _fields_ = [("tokens", POINTER(c_int32)), ("n_tokens", c_int32), ("seq", c_int32), ("logits", POINTER(c_float))]


class tmx_timings(Structure):
    _fields_ = [("prefill_ms", c_double), ("matmul_ms", c_double), ("attention_ms", c_double), ("rest_ms", c_double),
                ("decode_ms", c_double), ("n_prefill_tokens", c_int64), ("n_decode_tokens", c_int64),
                ("estimate_ms", c_double)]


class tmx_sampler_params(Structure):
    _fields_ = [("temperature", c_float), ("top_k", c_int32), ("top_p", c_float), ("min_p", c_float),
                ("repeat_penalty", c_float), ("repeat_last_n", c_int32), ("seed", c_uint64)]


class tmx_agreement(Structure):
    _fields_ = [("kl", c_double), ("max_abs_diff", c_double), ("top_a", c_int32), ("top_b", c_int32), ("margin_a", c_double)]


class tmx_attention_seq(Structure):
    _fields_ = [("q", c_void_p), ("k", c_void_p), ("v", c_void_p), ("out", c_void_p), ("lse", POINTER(c_float)),
                ("q_begin", c_int32), ("n_q", c_int32), ("n_prompt", c_int32)]


class tmx_attention_params(Structure):
    _fields_ = [("q_type", c_enum), ("kv_type", c_enum), ("n_heads", c_int32), ("n_kv_heads", c_int32), ("head_dim", c_int32),
                ("scale", c_float), ("q_pos_stride", c_size_t), ("q_head_stride", c_size_t), ("k_pos_stride", c_size_t),
                ("k_head_stride", c_size_t), ("v_pos_stride", c_size_t), ("v_head_stride", c_size_t),
                ("out_pos_stride", c_size_t), ("out_head_stride", c_size_t), ("pattern", tmx_pattern),
                ("seqs", POINTER(tmx_attention_seq)), ("n_seqs", c_int32), ("isa", c_enum), ("scratch", c_void_p)]


STRUCTS = [tmx_error, tmx_pattern, tmx_tensor_info, tmx_part_info, tmx_model_info, tmx_lora, tmx_model_params, tmx_turn, tmx_chat,
           tmx_detokenizer, tmx_progress, tmx_session_params, tmx_memory, tmx_prompt, tmx_timings, tmx_sampler_params, tmx_agreement,
           tmx_attention_seq, tmx_attention_params]

_created = POINTER(c_void_p)       # where a new object's address goes
_err = POINTER(tmx_error)

# name: (what it returns, what it takes); objects behind opaque types are c_void_p
FUNCTIONS = {
    "tmx_version": (c_char_p, []),
    "tmx_isa_best": (c_enum, []),
    "tmx_isa_name": (c_char_p, [c_enum]),
    "tmx_isa_parse": (c_enum, [c_char_p, POINTER(c_enum), _err]),
    "tmx_pool_create": (c_enum, [_created, c_int32, _err]),
    "tmx_pool_n_threads": (c_int32, [c_void_p]),
    "tmx_pool_free": (None, [c_void_p]),
    "tmx_pattern_is_dynamic": (c_bool, [c_enum]),
    "tmx_pattern_is_visible": (c_bool, [POINTER(tmx_pattern), c_int32, c_int32, c_int32]),
    "tmx_pattern_pairs": (c_int64, [POINTER(tmx_pattern), c_int32, c_int32, c_int32]),
    "tmx_file_open": (c_enum, [_created, c_char_p, _err]),
    "tmx_file_close": (None, [c_void_p]),
    "tmx_file_version": (c_int32, [c_void_p]),
    "tmx_file_bytes": (c_uint64, [c_void_p]),
    "tmx_file_n_parts": (c_int32, [c_void_p]),
    "tmx_file_part": (c_enum, [c_void_p, c_int32, POINTER(tmx_part_info), _err]),
    "tmx_file_n_keys": (c_int32, [c_void_p]),
    "tmx_file_key": (c_char_p, [c_void_p, c_int32]),
    "tmx_file_value_text": (c_char_p, [c_void_p, c_int32, POINTER(c_char), c_size_t]),
    "tmx_file_n_tensors": (c_int32, [c_void_p]),
    "tmx_file_tensor": (c_enum, [c_void_p, c_int32, POINTER(tmx_tensor_info), _err]),
    "tmx_file_check_tensors": (c_enum, [c_void_p, _err]),
    "tmx_model_layer_has_window": (c_bool, [POINTER(tmx_model_info), c_int32]),
    "tmx_model_open": (c_enum, [_created, c_char_p, POINTER(tmx_model_params), c_void_p, _err]),
    "tmx_model_probe_file": (c_enum, [c_void_p, POINTER(tmx_model_params), POINTER(tmx_model_info), _err]),
    "tmx_model_info_get": (POINTER(tmx_model_info), [c_void_p]),
    "tmx_model_compute": (c_enum, [c_void_p]),
    "tmx_model_isa": (c_enum, [c_void_p]),
    "tmx_model_provider": (c_char_p, [c_void_p]),
    "tmx_model_device_name": (c_char_p, [c_void_p]),
    "tmx_model_close": (None, [c_void_p]),
    "tmx_tokenize": (c_enum, [c_void_p, c_char_p, c_size_t, c_uint32, POINTER(c_int32), c_size_t, POINTER(c_size_t), _err]),
    "tmx_chat_tokenize": (c_enum, [c_void_p, POINTER(tmx_chat), POINTER(c_int32), c_size_t, POINTER(c_size_t), _err]),
    "tmx_chat_format": (c_char_p, [c_void_p]),
    "tmx_token_is_end": (c_bool, [c_void_p, c_int32]),
    "tmx_token_bytes": (POINTER(c_char), [c_void_p, c_int32, POINTER(c_size_t)]),
    "tmx_token_name": (c_char_p, [c_void_p, c_int32]),
    "tmx_detokenize": (c_enum, [c_void_p, POINTER(tmx_detokenizer), c_int32, POINTER(c_char), c_size_t, POINTER(c_size_t),
                                _err]),
    "tmx_plan_parse": (c_enum, [_created, c_char_p, POINTER(tmx_model_info), _err]),
    "tmx_plan_save": (c_enum, [c_void_p, c_char_p, _err]),
    "tmx_plan_free": (None, [c_void_p]),
    "tmx_plan_n_layers": (c_int32, [c_void_p]),
    "tmx_plan_layer": (POINTER(tmx_pattern), [c_void_p, c_int32]),
    "tmx_plan_own_window": (c_int32, [c_void_p, c_int32]),
    "tmx_plan_set_sizes": (c_enum, [c_void_p, c_int32, c_int32, c_int32, _err]),
    "tmx_plan_note": (c_char_p, [c_void_p]),
    "tmx_plan_set_note": (c_enum, [c_void_p, c_char_p, _err]),
    "tmx_plan_min_tokens": (c_int32, [c_void_p]),
    "tmx_plan_set_min_tokens": (c_enum, [c_void_p, c_int32, _err]),
    "tmx_plan_estimate_rows": (c_int32, [c_void_p]),
    "tmx_plan_set_estimate_rows": (c_enum, [c_void_p, c_int32, _err]),
    "tmx_plan_text": (c_char_p, [c_void_p, POINTER(c_char), c_size_t]),
    "tmx_preset_count": (c_int32, []),
    "tmx_preset_name": (c_char_p, [c_int32]),
    "tmx_memory_plan": (c_enum, [POINTER(tmx_model_info), c_enum, c_enum, POINTER(tmx_session_params), c_int32,
                                 POINTER(tmx_memory), _err]),
    "tmx_session_create": (c_enum, [_created, c_void_p, c_void_p, c_void_p, POINTER(tmx_session_params), _err]),
    "tmx_session_free": (None, [c_void_p]),
    "tmx_session_reset": (None, [c_void_p]),
    "tmx_session_rewind": (c_enum, [c_void_p, c_int32, c_int32, _err]),
    "tmx_session_n_reusable": (c_int32, [c_void_p, c_int32, c_int32]),
    "tmx_session_set_plan": (c_enum, [c_void_p, c_void_p, _err]),
    "tmx_session_n_ctx": (c_int32, [c_void_p]),
    "tmx_session_n_past": (c_int32, [c_void_p, c_int32]),
    "tmx_prefill": (c_enum, [c_void_p, POINTER(tmx_prompt), c_int32, _err]),
    "tmx_decode": (c_enum, [c_void_p, c_int32, c_int32, POINTER(c_float), _err]),
    "tmx_session_timings": (None, [c_void_p, POINTER(tmx_timings)]),
    "tmx_session_layer_attention_ms": (c_double, [c_void_p, c_int32]),
    "tmx_session_layer_density": (c_double, [c_void_p, c_int32]),
    "tmx_session_watch": (c_enum, [c_void_p, c_int32, c_int32, POINTER(c_double), c_int32, _err]),
    "tmx_sampler_create": (c_enum, [_created, POINTER(tmx_sampler_params), c_int32, _err]),
    "tmx_sampler_free": (None, [c_void_p]),
    "tmx_sampler_accept": (None, [c_void_p, c_int32]),
    "tmx_sampler_next": (c_int32, [c_void_p, POINTER(c_float)]),
    "tmx_decode_next": (c_enum, [c_void_p, c_int32, c_int32, c_void_p, POINTER(c_int32), _err]),
    "tmx_logits_compare": (None, [POINTER(c_float), POINTER(c_float), c_int32, POINTER(tmx_agreement)]),
    "tmx_attention": (c_enum, [POINTER(tmx_attention_params), c_void_p, _err]),
}
