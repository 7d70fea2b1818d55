#!/usr/bin/env python3
"""Times prefill of Hugging Face transformers at the Llama-3.1-8B shape: random weights, bf16, batch 1, logits of the last row only,
with the KV cache that generation would go on with.

    python3 bench/gpu_ttft_peer.py [--lengths 32768,131072] [--reps 3] [--only cudnn,fa3] [--beside FILE]

cudnn is scaled_dot_product_attention held to cuDNN's kernel; fa3 is FlashAttention-3 from the wheel fa3-fwd.  A peer that is
missing is left out and said.  --beside: the output of bench_gpu_ttft on the same machine, for ratios."""
import argparse
import pathlib
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM


def sdpa_gqa(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=query.shape[2] > 1, scale=scaling,
                                                           enable_gqa=True)
    return out.transpose(1, 2), None


def cudnn(module, query, key, value, attention_mask, **kwargs):
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return sdpa_gqa(module, query, key, value, attention_mask, scaling=kwargs.get("scaling"))


def fa3(module, query, key, value, attention_mask, scaling=None, **kwargs):
    from fa3_fwd_interface import flash_attn_func

    out = flash_attn_func(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), softmax_scale=scaling, causal=True)
    return (out[0] if isinstance(out, tuple) else out), None


def make_model(name):
    config = LlamaConfig(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
                         num_key_value_heads=8, head_dim=128, max_position_embeddings=131072 + 64, rope_theta=500000.0,
                         rms_norm_eps=1e-5, tie_word_embeddings=False, attn_implementation=name)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        return LlamaForCausalLM(config).eval()


def time_prefill(model, n_tokens, n_reps):
    """(median ms, least, most)"""
    ids = torch.randint(0, 128256, (1, n_tokens), device="cuda")
    times = []
    for rep in range(-1, n_reps):
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.inference_mode():
            out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        logits = out.logits[0, -1].float().cpu()
        ms = (time.perf_counter() - start) * 1e3
        if not torch.isfinite(logits).all():
            raise SystemExit("the logits are not finite")
        del out
        if rep >= 0:
            times.append(ms)
    times.sort()
    return times[len(times) // 2], times[0], times[-1]


def read_ours(path):
    """{tokens: {plan: median ms}} of bench_gpu_ttft's table"""
    ours = {}
    for line in pathlib.Path(path).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 10 and cells[0].isdigit():
            ours.setdefault(int(cells[0]), {})[cells[1]] = float(cells[2])
    return ours


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="32768,131072")
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--only", default="cudnn,fa3")
    parser.add_argument("--beside")
    options = parser.parse_args()
    import transformers

    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, transformers {transformers.__version__}")
    ours = read_ours(options.beside) if options.beside else {}
    peers = {"cudnn": cudnn, "fa3": fa3}
    for name, function in peers.items():
        AttentionInterface.register(name, function)
    model = make_model("cudnn")
    print("| tokens | peer | TTFT ms, median | least | spread % | ours is faster by |\n|--|--|--|--|--|--|")
    for n_tokens in map(int, options.lengths.split(",")):
        for name in options.only.split(","):
            model.config._attn_implementation = name
            try:
                median, least, most = time_prefill(model, n_tokens, options.reps)
            except (ImportError, RuntimeError) as error:
                print(f"| {n_tokens} | {name} | left out: {str(error).splitlines()[0]} | | | |")
                continue
            ratios = ", ".join(f"{plan} {median / ms:.2f}" for plan, ms in ours.get(n_tokens, {}).items())
            print(f"| {n_tokens} | {name} | {median:.1f} | {least:.1f} | {100 * (most - least) / median:.1f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
