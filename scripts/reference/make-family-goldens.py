#!/usr/bin/env python3
"""Writes tests/vectors/logits_families.txt: logits of tiny random models, one or more per family, by transformers' own class
of the family, in f64 (its rotary tables and softmax stay f32).

The weights are not stored: both this script and tests/tiny_family.h make them from the tensor's name, by the same few lines.
Each line is  NAME N_TOKENS LARGEST V0 V4 V8 ...: the largest absolute logit after the last token, and every fourth logit.
"""
import math
import pathlib

import numpy as np
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]
N_VOCAB, LENGTHS = 257, (1, 33, 300)
MASK = (1 << 64) - 1


def randoms(seed, n):
    """n values of splitmix64 from this seed."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def fnv(name):
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 & MASK
    return h


def tensor(name, *shape):
    """What the file holds under this name: norms around 1, everything else around 0."""
    centre, spread = (1.0, 0.3) if "norm" in name else (0.0, 1.0 if name.startswith(("token_embd", "output")) else 0.35)
    unit = (randoms(fnv(name), math.prod(shape)) >> np.uint64(40)).astype(np.float32) * np.float32(2**-23) - np.float32(1)
    return (np.float32(centre) + np.float32(spread) * unit).reshape(shape)


def tokens(n):
    return [int(z) for z in (randoms(77, n) >> np.uint64(33)) % np.uint64(N_VOCAB)]


def interleaved(rows, n_heads):
    """GGUF's llama turns pairs (2i, 2i+1), transformers (i, i + d/2)."""
    return rows.reshape(n_heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def layer_state(family, config, layer):
    def t(name, *shape):
        return tensor(f"blk.{layer}.{name}", *shape)

    def norm(name, n):
        """Gemma's own code adds 1 to what its checkpoints hold; files hold the sum."""
        return t(name, n) - (1 if family == "gemma3" else 0)

    embd, ff, dim = config.hidden_size, config.intermediate_size, config.head_dim
    n_q, n_kv = config.num_attention_heads * dim, config.num_key_value_heads * dim
    out = {"input_layernorm.weight": norm("attn_norm.weight", embd), "self_attn.o_proj.weight": t("attn_output.weight", embd, n_q)}
    ffn_norm = "pre_feedforward_layernorm" if family == "gemma3" else "post_attention_layernorm"
    out[f"{ffn_norm}.weight"] = norm("ffn_norm.weight", embd)
    if family == "gemma3":
        out["post_attention_layernorm.weight"] = norm("post_attention_norm.weight", embd)
        out["post_feedforward_layernorm.weight"] = norm("post_ffw_norm.weight", embd)
    if family == "phi3":
        out["self_attn.qkv_proj.weight"] = t("attn_qkv.weight", n_q + 2 * n_kv, embd)
        out["mlp.gate_up_proj.weight"] = t("ffn_up.weight", 2 * ff, embd)
        out["mlp.down_proj.weight"] = t("ffn_down.weight", embd, ff)
        return out
    for letter, n in (("q", n_q), ("k", n_kv), ("v", n_kv)):
        rows = t(f"attn_{letter}.weight", n, embd)
        out[f"self_attn.{letter}_proj.weight"] = interleaved(rows, n // dim) if family == "llama" and letter != "v" else rows
        if family == "qwen2":
            out[f"self_attn.{letter}_proj.bias"] = t(f"attn_{letter}.bias", n)
    if family in ("qwen3", "qwen3moe", "gemma3"):
        for letter in "qk":
            out[f"self_attn.{letter}_norm.weight"] = norm(f"attn_{letter}_norm.weight", dim)
    if family == "qwen3moe":
        n, ff = config.num_experts, config.moe_intermediate_size
        out["mlp.gate.weight"] = t("ffn_gate_inp.weight", n, embd)
        gate, up = t("ffn_gate_exps.weight", n, ff, embd), t("ffn_up_exps.weight", n, ff, embd)
        out["mlp.experts.gate_up_proj"] = np.concatenate([gate, up], axis=1)
        out["mlp.experts.down_proj"] = t("ffn_down_exps.weight", n, embd, ff)
        return out
    for name, shape in (("gate", (ff, embd)), ("up", (ff, embd)), ("down", (embd, ff))):
        out[f"mlp.{name}_proj.weight"] = t(f"ffn_{name}.weight", *shape)
    return out


def build(family, config, model_class):
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = model_class(config).double().eval()
    state = {"model.embed_tokens.weight": tensor("token_embd.weight", N_VOCAB, config.hidden_size),
             "model.norm.weight": tensor("output_norm.weight", config.hidden_size) - (1 if family == "gemma3" else 0)}
    if not config.tie_word_embeddings:
        state["lm_head.weight"] = tensor("output.weight", N_VOCAB, config.hidden_size)
    for layer in range(config.num_hidden_layers):
        state |= {f"model.layers.{layer}.{name}": value for name, value in layer_state(family, config, layer).items()}
    state = {name: torch.from_numpy(np.ascontiguousarray(value)).double() for name, value in state.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model


def common(layers=3, ff=80, ctx=1024, tied=False, head_dim=8, heads=6, kv=2, **more):
    return {"vocab_size": N_VOCAB, "hidden_size": 48, "intermediate_size": ff, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": head_dim, "max_position_embeddings": ctx,
            "rms_norm_eps": 1e-5, "tie_word_embeddings": tied, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None} | more


def rope(kind="default", base=10000.0, **more):
    return {"rope_type": kind, "rope_theta": base} | more


LLAMA3 = rope("llama3", 10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
YARN = rope("yarn", 10000.0, factor=4.0, original_max_position_embeddings=64)
LONG = rope("longrope", 10000.0, short_factor=[1 + i / 8 for i in range(6)], long_factor=[1.0 + i * i for i in range(6)],
            original_max_position_embeddings=64, partial_rotary_factor=0.75)
T = transformers
CASES = {
    "llama": ("llama", T.LlamaConfig(**common(rope_parameters=rope())), T.LlamaForCausalLM),
    "llama3": ("llama", T.LlamaConfig(**common(tied=True, rope_parameters=LLAMA3)), T.LlamaForCausalLM),
    "llama-linear": ("llama", T.LlamaConfig(**common(rope_parameters=rope("linear", factor=4.0))), T.LlamaForCausalLM),
    "llama-yarn": ("llama", T.LlamaConfig(**common(rope_parameters=YARN)), T.LlamaForCausalLM),
    "mistral": ("llama", T.MistralConfig(**common(sliding_window=32, rope_parameters=rope())), T.MistralForCausalLM),
    "qwen2": ("qwen2", T.Qwen2Config(**common(tied=True, rope_parameters=rope(base=1e6))), T.Qwen2ForCausalLM),
    "qwen2-yarn": ("qwen2", T.Qwen2Config(**common(rope_parameters=YARN)), T.Qwen2ForCausalLM),
    "qwen3": ("qwen3", T.Qwen3Config(**common(head_dim=16, rope_parameters=rope(base=1e6))), T.Qwen3ForCausalLM),
    "gemma3": ("gemma3", T.Gemma3TextConfig(**common(
        layers=7, head_dim=16, heads=4, kv=1, tied=True, sliding_window=32, query_pre_attn_scalar=16,
        rope_parameters={"full_attention": rope(base=1e6), "sliding_attention": rope()})), T.Gemma3ForCausalLM),
    "gemma3-linear": ("gemma3", T.Gemma3TextConfig(**common(
        layers=7, head_dim=16, heads=4, kv=1, tied=True, sliding_window=32, query_pre_attn_scalar=16,
        rope_parameters={"full_attention": rope("linear", 1e6, factor=8.0), "sliding_attention": rope()})), T.Gemma3ForCausalLM),
    "phi3": ("phi3", T.Phi3Config(**common(head_dim=16, heads=3, kv=1, sliding_window=32, rope_parameters=rope())), T.Phi3ForCausalLM),
    "phi3-long": ("phi3", T.Phi3Config(**common(head_dim=16, heads=3, kv=1, tied=True, rope_parameters=LONG, partial_rotary_factor=0.75,
                                                original_max_position_embeddings=64)), T.Phi3ForCausalLM),
    "qwen3moe": ("qwen3moe", T.Qwen3MoeConfig(**common(
        head_dim=16, rope_parameters=rope(base=1e6), num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24,
        norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[])), T.Qwen3MoeForCausalLM),
}


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    lines = [f"# made by scripts/reference/make-family-goldens.py: transformers {transformers.__version__}, "
             f"torch {torch.__version__}, f64"]
    for name, (family, config, model_class) in CASES.items():
        model = build(family, config, model_class)
        for n in LENGTHS:
            logits = model(torch.tensor([tokens(n)]), logits_to_keep=1, use_cache=False).logits[0, -1].numpy()
            shown = " ".join(f"{x:.7g}" for x in logits[::4])
            lines.append(f"{name} {n} {np.abs(logits).max():.7g} {shown}")
            print(name, n, np.abs(logits).max(), logits.argmax(), flush=True)
    (ROOT / "tests/vectors/logits_families.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
