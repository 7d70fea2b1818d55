"""The independent truth for trianglemix: transformers' own Llama or Gemma 3 on the weights of a GGUF file.

In: a GGUF file of the llama or gemma3 family, LoRA adapters if any, token ids, and a plan (a pattern per layer).  Out: the
logits after the last token.  Nothing of the engine is used: the gguf package reads and expands the weights, transformers runs them with
eager attention, and each layer gets its own additive mask, made from the definition of the patterns.

Needs numpy, torch, transformers and gguf (README.md beside this file).
"""
import re
from dataclasses import dataclass, replace

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import DynamicCache, Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class Pattern:
    """What one layer sees during prefill; the sizes are read only by the kinds that name them."""
    kind: str = "dense"
    n_sink: int = 8
    n_window: int = 512
    n_last: int = 128


def visible(pattern, n_prompt):
    """bool [n_prompt][n_prompt]: may query row i see key j?"""
    i = torch.arange(n_prompt)[:, None]
    j = torch.arange(n_prompt)[None, :]
    causal = j <= i
    if pattern.kind == "dense":
        return causal
    near = (i - j < pattern.n_window) | (j < pattern.n_sink)
    if pattern.kind == "triangle":
        near = near | (i >= n_prompt - min(pattern.n_last, n_prompt - 1))
    return causal & near


def parse_plan(spec, n_layers, n_sink=8, n_window=512, n_last=128):
    """"dense", "triangle", "triangle:5,7,10-29", "streaming:..." -> one Pattern per layer."""
    kind, _, layers = spec.partition(":")
    if kind not in ("dense", "triangle", "streaming"):
        raise ValueError(f"plan {spec!r}: expected dense, triangle or streaming")
    chosen = set() if layers else set(range(n_layers))
    for part in filter(None, layers.split(",")):
        first, last = re.fullmatch(r"(\d+)(?:-(\d+))?", part).groups()
        chosen |= set(range(int(first), int(last or first) + 1))
    if not chosen <= set(range(n_layers)):
        raise ValueError(f"plan {spec!r}: the model has layers 0-{n_layers - 1}")
    pattern = Pattern(kind, n_sink, n_window, n_last)
    return [pattern if layer in chosen else replace(pattern, kind="dense") for layer in range(n_layers)]


class Adapter:
    """A LoRA adapter in llama.cpp's GGUF form: NAME.lora_a [rank][in] and NAME.lora_b [out][rank]."""

    def __init__(self, path, scale=1.0):
        reader = gguf.GGUFReader(path)
        self.alpha_times_scale = reader.fields["adapter.lora.alpha"].contents() * scale
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}

    def delta(self, name):
        """What is added to a tensor, f64; 0 if the adapter leaves it alone."""
        if f"{name}.lora_a" not in self.tensors:
            return 0.0
        a, b = (dequantize(found.data, found.tensor_type).astype(np.float64)
                for found in (self.tensors[f"{name}.lora_a"], self.tensors[f"{name}.lora_b"]))
        return self.alpha_times_scale / len(a) * (b @ a)


class GgufModel:
    """Keys and expanded weights of a GGUF file of one family."""

    def __init__(self, path, architecture):
        self.reader = gguf.GGUFReader(path)
        if self.value("general.architecture") != architecture:
            raise ValueError(f"{path}: architecture {self.value('general.architecture')}, expected {architecture}")
        self.tensors = {tensor.name: tensor for tensor in self.reader.tensors}

    def value(self, key):
        return self.reader.fields[key].contents()

    def tensor(self, name):
        """f32, slowest axis first."""
        found = self.tensors[name]
        return dequantize(found.data, found.tensor_type).astype(np.float32)


class GgufGemma3(GgufModel):
    """Gemma 3, text.  The file's norm weights hold the 1 that transformers' code adds."""
    model_class = Gemma3ForCausalLM

    def __init__(self, path):
        super().__init__(path, "gemma3")

    def config(self):
        def value(key):
            return self.value(f"gemma3.{key}")

        return Gemma3TextConfig(
            num_hidden_layers=value("block_count"), hidden_size=value("embedding_length"),
            intermediate_size=value("feed_forward_length"), num_attention_heads=value("attention.head_count"),
            num_key_value_heads=value("attention.head_count_kv"), head_dim=value("attention.key_length"),
            max_position_embeddings=value("context_length"), rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
            sliding_window=value("attention.sliding_window"), query_pre_attn_scalar=value("attention.key_length"),
            rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": value("rope.freq_base")},
                             "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}},
            vocab_size=len(self.value("tokenizer.ggml.tokens")), tie_word_embeddings="output.weight" not in self.tensors,
            pad_token_id=None, bos_token_id=None, eos_token_id=None)

    def state_dict(self, config):
        state = {"model.embed_tokens.weight": self.tensor("token_embd.weight"), "model.norm.weight": self.tensor("output_norm.weight") - 1}
        norms = {"input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm",
                 "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
                 "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
        matrices = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
                    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
                    "mlp.down_proj": "ffn_down"}
        for layer in range(config.num_hidden_layers):
            for names, less in ((norms, 1), (matrices, 0)):
                for theirs, ours in names.items():
                    state[f"model.layers.{layer}.{theirs}.weight"] = self.tensor(f"blk.{layer}.{ours}.weight") - less
        return {name: torch.from_numpy(array) for name, array in state.items()}

    def split(self, text):
        """Ids of a text by the longest vocabulary entry at each place: plain text as the model knows it, though not always
        the split of its own tokenizer."""
        ids = {token: i for i, token in enumerate(self.value("tokenizer.ggml.tokens"))}
        text, at, found = text.replace(" ", "\u2581"), 0, [self.value("tokenizer.ggml.bos_token_id")]
        while at < len(text):
            n = next(n for n in range(24, 0, -1) if text[at:at + n] in ids)
            found.append(ids[text[at:at + n]])
            at += n
        return found


class GgufLlama(GgufModel):
    """Hyper-parameters, expanded weights and tokenizer of a GGUF file of the llama family, with adapters merged and
    with another RoPE base if asked for."""

    model_class = LlamaForCausalLM

    def __init__(self, path, adapters=(), rope_freq_base=None):
        super().__init__(path, "llama")
        self.adapters = adapters
        self.rope_freq_base = rope_freq_base

    def rope_base(self):
        return self.rope_freq_base or self.value("llama.rope.freq_base")

    def tensor(self, name):
        """f32, slowest axis first, adapters merged."""
        return (super().tensor(name) + sum(adapter.delta(name) for adapter in self.adapters)).astype(np.float32)

    def rotary_tensor(self, name, n_heads):
        """Rows of q and k in transformers' order: GGUF pairs (2i, 2i+1) for rotation, transformers (i, i + d/2)."""
        rows = self.tensor(name)
        return rows.reshape(n_heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)

    def config(self):
        return LlamaConfig(
            num_hidden_layers=self.value("llama.block_count"),
            hidden_size=self.value("llama.embedding_length"),
            intermediate_size=self.value("llama.feed_forward_length"),
            num_attention_heads=self.value("llama.attention.head_count"),
            num_key_value_heads=self.value("llama.attention.head_count_kv"),
            max_position_embeddings=self.value("llama.context_length"),
            rms_norm_eps=self.value("llama.attention.layer_norm_rms_epsilon"),
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_base()},
            vocab_size=self.value("llama.vocab_size"),
            tie_word_embeddings="output.weight" not in self.tensors,
            pad_token_id=None, bos_token_id=None, eos_token_id=None)

    def state_dict(self, config):
        state = {"model.embed_tokens.weight": self.tensor("token_embd.weight"),
                 "model.norm.weight": self.tensor("output_norm.weight")}
        if not config.tie_word_embeddings:
            state["lm_head.weight"] = self.tensor("output.weight")
        names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.v_proj": "attn_v",
                 "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
                 "mlp.down_proj": "ffn_down"}
        for layer in range(config.num_hidden_layers):
            for theirs, ours in names.items():
                state[f"model.layers.{layer}.{theirs}.weight"] = self.tensor(f"blk.{layer}.{ours}.weight")
            for theirs, ours, n_heads in (("q_proj", "attn_q", config.num_attention_heads),
                                          ("k_proj", "attn_k", config.num_key_value_heads)):
                state[f"model.layers.{layer}.self_attn.{theirs}.weight"] = self.rotary_tensor(
                    f"blk.{layer}.{ours}.weight", n_heads)
        return {name: torch.from_numpy(array) for name, array in state.items()}

    def tokenizer(self):
        """Byte-level BPE whose pre-tokenizer is "smollm": digits one by one, then GPT-2's split."""
        if self.value("tokenizer.ggml.pre") != "smollm":
            raise ValueError(f"pre-tokenizer {self.value('tokenizer.ggml.pre')}, expected smollm")
        tokens = self.value("tokenizer.ggml.tokens")
        merges = [tuple(merge.split(" ")) for merge in self.value("tokenizer.ggml.merges")]
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, self.value("tokenizer.ggml.token_type")) if kind == gguf.TokenType.CONTROL])
        return tokenizer

    def chat(self, user, assistant=""):
        """One ChatML turn as text, with the template's own system line and the assistant's turn begun."""
        system = re.search(r"<\|im_start\|>system\n(.*?)<\|im_end\|>", self.value("tokenizer.chat_template")).group(1)
        return (f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
                f"<|im_start|>assistant\n{assistant}")


class Reference:
    """attention: "eager" is the reference; "sdpa" is the same mathematics in less memory, for long greedy runs.
    dtype torch.float64 leaves only transformers' rotary table and its softmax in f32."""

    def __init__(self, gguf_llama, dtype=torch.float32, attention="eager"):
        config = gguf_llama.config()
        config._attn_implementation = attention
        self.n_layers = config.num_hidden_layers
        self.dtype = dtype
        self.model = gguf_llama.model_class(config)
        state = gguf_llama.state_dict(config)
        missing, unexpected = self.model.load_state_dict(state, strict=False, assign=True)
        assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
        self.model.tie_weights()
        self.model.to(dtype).eval()
        self.masks = None
        for layer, block in enumerate(self.model.model.layers):
            block.self_attn.register_forward_pre_hook(self._substitute(layer), with_kwargs=True)

    def _substitute(self, layer):
        def hook(_module, args, kwargs):
            if self.masks is not None:
                kwargs["attention_mask"] = self.masks[layer]
            return args, kwargs
        return hook

    def _masks(self, plan, n_prompt):
        """One additive mask a layer; layers of the same pattern share it.  A plan of None: transformers makes them."""
        if plan is None:
            return None
        made = {}
        for pattern in set(plan):
            made[pattern] = torch.zeros(1, 1, n_prompt, n_prompt, dtype=self.dtype).masked_fill_(
                ~visible(pattern, n_prompt), float("-inf"))
        return [made[pattern] for pattern in plan]

    @torch.no_grad()
    def prefill(self, ids, plan, cache=None):
        """Logits [n_vocab] after the last of ids."""
        assert plan is None or len(plan) == self.n_layers
        self.masks = self._masks(plan, len(ids))
        try:
            output = self.model(torch.tensor([ids]), attention_mask=self.masks and self.masks[0], past_key_values=cache,
                                use_cache=cache is not None, logits_to_keep=1)
        finally:
            self.masks = None
        return output.logits[0, -1].numpy()

    @torch.no_grad()
    def greedy(self, ids, plan, n_new):
        """(logits after the prompt, n_new greedy ids); decoding is dense over the whole cache."""
        cache = DynamicCache()
        first = logits = self.prefill(ids, plan, cache)
        new = []
        for _ in range(n_new):
            new.append(int(logits.argmax()))
            if len(new) < n_new:
                output = self.model(torch.tensor([[new[-1]]]), past_key_values=cache, use_cache=True)
                logits = output.logits[0, -1].numpy()
        return first, new


def log_softmax(logits):
    logits = np.asarray(logits, dtype=np.float64)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def kl(a, b):
    """KL(softmax(a) || softmax(b)), natural log."""
    log_a, log_b = log_softmax(a), log_softmax(b)
    return float((np.exp(log_a) * (log_a - log_b)).sum())
