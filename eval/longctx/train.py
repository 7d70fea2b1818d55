#!/usr/bin/env python3
"""Extends the demo model to 32K tokens: RoPE base 1e6 and a LoRA adapter on every linear layer, trained on long documents
with planted facts and questions about them.

In: the demo model (GGUF) and a few million tokens of English text.  Out: an adapter in llama.cpp's GGUF form.

    python3 eval/longctx/train.py --text /usr/share/doc --seconds 1140 -o adapter.gguf

Half of what a step learns is to answer, half is to go on with the text, so that the model keeps its language while it
learns to look far back.  Weights are read with scripts/reference/reference.py; needs what its requirements.txt lists,
and a GPU with 80 GB for documents of 32K tokens.  --steps and --lengths make a small trial on a CPU possible.
"""
import argparse
import gzip
import math
import pathlib
import random
import sys
import time
import uuid

import gguf
import numpy as np
import torch
import torch.nn.functional as F

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts/reference"))
from reference import GgufLlama  # noqa: E402

ROPE_BASE, RANK, ALPHA = 1e6, 32, 32.0
LEARNING_RATE, WARM_UP_STEPS = 6e-4, 20
LM_TOKENS = 4096                     # of each document, scored as plain text; the whole would cost half the step
LM_WEIGHT = 0.5
TEST_TOKENS = 600_000                # the end of the text, never trained on
LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")

ADJECTIVES = """amber ancient bitter blue bold brass brave bright broken calm clever cold copper crimson crooked curious
dark dusty eager early empty faded gentle ghostly golden grand green grey heavy hidden hollow humble icy iron ivory jolly
kind late lonely loud lucky mellow misty modest mossy narrow noble odd pale patient plain polite proud purple quiet rapid
rough royal rusty sacred scarlet secret silent silver slow small snowy soft solar spare steady stern strange sunny swift
tall tidy tiny violet wandering warm weary wicked wild wise wooden yellow young""".split()
NOUNS = """anchor apple arrow attic badge bakery barn basket beacon bell bench bottle bridge bucket cabin candle castle
cellar chapel chest clock cloud coin compass cottage cradle crown dagger desert diary donkey drum engine falcon farm
feather fence ferry field flute forest fountain fox garden gate glacier goblet hammer harbor hat hill island jacket
kettle key kitchen ladder lake lamp lantern library lighthouse map market meadow mill mirror monastery mountain museum
needle oak orchard owl palace parrot pebble piano pilot pocket pond quarry raven ribbon river rocket rope saddle school
scroll shed ship shoe spoon stable station statue stone stove table temple tent theater tower train tunnel valley vault
violin wagon wall well whale window wolf""".split()


# ---------------------------------------------------------------- the model


def rms_norm(x, weight, eps):
    return (F.rms_norm(x.float(), weight.shape, eps=eps) * weight).to(x.dtype)


def rotate(x, cos, sin):
    """x [n][heads][d]; pairs (2i, 2i+1), the order in which a GGUF file keeps q and k."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


class AdaptedLlama(torch.nn.Module):
    """The demo model, frozen, with a trainable A [RANK][in] and B [out][RANK] for every linear layer; B starts at 0."""

    def __init__(self, model, dtype, device):
        super().__init__()
        self.n_layers = model.value("llama.block_count")
        self.n_heads = model.value("llama.attention.head_count")
        self.n_kv_heads = model.value("llama.attention.head_count_kv")
        self.eps = model.value("llama.attention.layer_norm_rms_epsilon")
        self.weights = {name: torch.from_numpy(model.tensor(name)).to(device, torch.float32 if "norm" in name else dtype)
                        for name in model.tensors}
        self.head_dim = self.weights["blk.0.attn_q.weight"].shape[0] // self.n_heads
        self.a, self.b = torch.nn.ParameterDict(), torch.nn.ParameterDict()
        for layer in range(self.n_layers):
            for linear in LINEARS:
                n_out, n_in = self.weights[f"blk.{layer}.{linear}.weight"].shape
                self.a[f"{layer}_{linear}"] = torch.nn.Parameter(torch.randn(RANK, n_in, device=device) / math.sqrt(n_in))
                self.b[f"{layer}_{linear}"] = torch.nn.Parameter(torch.zeros(n_out, RANK, device=device))
        self.run_block = torch.compile(self.block, dynamic=False) if device == "cuda" else self.block

    def block(self, x, cos, sin, norms, linears):
        """One layer on x [n][n_embd]; linears: name -> (weight, A, B)."""
        def apply(y, name):
            weight, a, b = linears[name]
            return y @ weight.T + (y @ a.T @ b.T) * (ALPHA / RANK)

        n, repeats = x.shape[0], self.n_heads // self.n_kv_heads
        y = rms_norm(x, norms[0], self.eps)
        q = rotate(apply(y, "attn_q").view(n, self.n_heads, -1), cos, sin)
        k = rotate(apply(y, "attn_k").view(n, self.n_kv_heads, -1), cos, sin).repeat_interleave(repeats, 1)
        v = apply(y, "attn_v").view(n, self.n_kv_heads, -1).repeat_interleave(repeats, 1)
        heads = F.scaled_dot_product_attention(*(t.transpose(0, 1)[None] for t in (q, k, v)), is_causal=True)
        x = x + apply(heads[0].transpose(0, 1).reshape(n, -1), "attn_output")
        y = rms_norm(x, norms[1], self.eps)
        return x + apply(F.silu(apply(y, "ffn_gate")) * apply(y, "ffn_up"), "ffn_down")

    def forward(self, ids):
        """Normed last hidden state [n][n_embd]; logits() of some of its rows, since all would not fit."""
        x = self.weights["token_embd.weight"][ids]
        exponents = torch.arange(0, self.head_dim, 2, device=x.device, dtype=torch.float32) / self.head_dim
        angles = torch.arange(len(ids), device=x.device, dtype=torch.float32)[:, None] * ROPE_BASE ** -exponents
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        for layer in range(self.n_layers):
            norms = [self.weights[f"blk.{layer}.{name}.weight"] for name in ("attn_norm", "ffn_norm")]
            linears = {name: (self.weights[f"blk.{layer}.{name}.weight"], self.a[f"{layer}_{name}"].to(x.dtype),
                              self.b[f"{layer}_{name}"].to(x.dtype)) for name in LINEARS}
            x = self.run_block(x, cos, sin, norms, linears)
        return rms_norm(x, self.weights["output_norm.weight"], self.eps)

    def logits(self, hidden):
        return hidden @ self.weights["token_embd.weight"].T

    def save(self, path):
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", ALPHA)
        writer.add_name("SmolLM2 135M Instruct 32K")
        writer.add_description(f"LoRA adapter for 32768 tokens; use with RoPE base {ROPE_BASE:.0f}")
        writer.add_license("apache-2.0")
        for key in self.a:
            layer, linear = key.split("_", 1)
            for suffix, matrix in (("a", self.a[key]), ("b", self.b[key])):
                writer.add_tensor(f"blk.{layer}.{linear}.weight.lora_{suffix}",
                                  matrix.detach().cpu().to(torch.float16).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


# ---------------------------------------------------------------- documents


def make_facts(dice, n):
    """n facts of one kind as (sentence, question, answer); their keys differ."""
    def word_pair():
        return f"{dice.choice(ADJECTIVES)} {dice.choice(NOUNS)}"

    def new_uuid():
        return str(uuid.UUID(int=dice.getrandbits(128), version=4))

    kind = dice.choice(("passcode", "passcode", "number", "number", "uuid", "keeper", "line"))
    keys = set()
    while len(keys) < n:
        keys.add(word_pair())
    facts = []
    for key in sorted(keys):
        number, dashed, code, line_key = dice.randrange(10**5, 10**7), key.replace(" ", "-"), new_uuid(), new_uuid()
        thing = word_pair()
        facts.append({
            "passcode": (f"The secret passcode of the {key} is {number}.",
                         f"What is the secret passcode of the {key} mentioned in the text above?",
                         f"The secret passcode of the {key} is {number}."),
            "number": (f"One of the special magic numbers for {dashed} is: {number}.",
                       f"What is the special magic number for {dashed} mentioned in the provided text?",
                       f"The special magic number for {dashed} mentioned in the provided text is {number}."),
            "uuid": (f"One of the special magic uuids for {dashed} is: {code}.",
                     f"What is the special magic uuid for {dashed} mentioned in the provided text?",
                     f"The special magic uuid for {dashed} mentioned in the provided text is {code}."),
            "keeper": (f"The keeper of the {key} always carries a {thing}.",
                       f"What does the keeper of the {key} always carry?",
                       f"The keeper of the {key} always carries a {thing}."),
            "line": (f'"{line_key}": "{code}"',
                     f'What is the value of the key "{line_key}"?',
                     f'The value is "{code}".'),
        }[kind])
    return facts


class Documents:
    """Chats about a stretch of text in which facts were planted: several questions when training, one when testing."""

    def __init__(self, tokens, tokenizer, seed):
        self.tokens, self.tokenizer, self.dice = tokens, tokenizer, random.Random(seed)

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def sample(self, n_tokens, is_test=False):
        """(ids [n_tokens], True where an answer's token stands)"""
        facts = make_facts(self.dice, 4 if is_test else self.dice.randrange(6, 25))
        asked = self.dice.sample(facts, 1 if is_test else min(len(facts), self.dice.randrange(3, 9)))
        tail, is_answer = [], []
        for i, (_, question, answer) in enumerate(asked):
            turn = "\n\n" if i == 0 else "<|im_start|>user\n"
            parts = [self.encode(f"{turn}{question}<|im_end|>\n<|im_start|>assistant\n"),
                     self.encode(f"{answer}<|im_end|>"), self.encode("\n")]
            for k, part in enumerate(parts):
                tail += part
                is_answer += [k == 1] * len(part)
        head = self.encode("<|im_start|>user\n")
        planted = [self.encode(f"\n{sentence}\n") for sentence, _, _ in facts]
        n_text = n_tokens - len(head) - len(tail) - sum(map(len, planted))
        begin = self.dice.randrange(len(self.tokens) - n_text)
        text, body, done = self.tokens[begin:begin + n_text].tolist(), [], 0
        for place, sentence in sorted((self.dice.randrange(n_text), sentence) for sentence in planted):
            body += text[done:place] + sentence
            done = place
        ids = head + body + text[done:] + tail
        return np.array(ids), np.array([False] * (len(ids) - len(tail)) + is_answer)


def read_text(paths):
    """The text of files, and of everything below folders that looks like plain text."""
    for path in map(pathlib.Path, paths):
        files = sorted(p for p in path.rglob("*") if p.name.endswith((".txt", ".txt.gz", ".md", ".rst"))) \
            if path.is_dir() else [path]
        for file in files:
            data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            yield data.decode("utf-8", errors="replace")


# ---------------------------------------------------------------- training


def answer_logits(model, ids, is_answer):
    """Logits and true tokens at the places an answer is written."""
    ids = torch.from_numpy(ids).to(next(iter(model.weights.values())).device)
    places = torch.from_numpy(np.nonzero(is_answer[1:])[0]).to(ids.device)
    hidden = model(ids)
    return ids, hidden, model.logits(hidden[places]).float(), ids[places + 1]


@torch.no_grad()
def evaluate(model, documents, length, n_samples):
    """How many answers are right to the last token (teacher-forced), and the mean loss; the same documents every time."""
    documents.dice.seed(5)
    n_right, loss = 0, 0.0
    for _ in range(n_samples):
        _, _, logits, truth = answer_logits(model, *documents.sample(length, is_test=True))
        n_right += bool((logits.argmax(-1) == truth).all())
        loss += float(F.cross_entropy(logits, truth)) / n_samples
    return f"{length}: {n_right} of {n_samples}, loss {loss:.4f}"


def train(model, documents, test, options):
    """A step is one longest document, or it and a short one, or two middle ones.  The rate falls along a cosine over the
    time or the steps."""
    longest, middle, short = options.lengths
    choices = ((longest, short), (longest,), (longest,), (middle, middle))
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0, betas=(0.9, 0.98))
    start, step = time.monotonic(), 0
    while True:
        seconds = time.monotonic() - start
        done = step / options.steps if options.steps else seconds / options.seconds
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / WARM_UP_STEPS) * (0.5 + 0.5 * math.cos(math.pi * done))
        for length in documents.dice.choice(choices):
            ids, hidden, logits, truth = answer_logits(model, *documents.sample(length))
            answer_loss = F.cross_entropy(logits, truth)
            n_lm = min(LM_TOKENS, length - 1)
            begin = documents.dice.randrange(length - n_lm)
            lm_loss = F.cross_entropy(model.logits(hidden[begin:begin + n_lm]).float(), ids[begin + 1:begin + n_lm + 1])
            (answer_loss + LM_WEIGHT * lm_loss).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 20 == 0 or step == options.steps:
            print(f"step {step}, {seconds:.0f} s: answers {answer_loss.item():.4f}, text {lm_loss.item():.3f}", flush=True)
        if step % 150 == 0:
            print(evaluate(model, test, short, 6), evaluate(model, test, longest, 6), sep="; ", flush=True)
            model.save(options.output)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", required=True, help="files, or folders searched for .txt, .md and .rst")
    parser.add_argument("--model", default=ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf", help="the demo model")
    parser.add_argument("--seconds", type=float, default=1140, help="training time (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="stop after so many steps instead")
    parser.add_argument("--lengths", type=int, nargs=3, default=(32768, 16384, 8192), metavar="N",
                        help="tokens of documents, longest first (default: 32768 16384 8192)")
    parser.add_argument("-o", "--output", default="adapter.gguf", help="the adapter (default: %(default)s)")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    gguf_llama = GgufLlama(options.model)
    tokenizer = gguf_llama.tokenizer()
    tokens = np.concatenate([np.array(tokenizer.encode(text + "\n", add_special_tokens=False).ids, dtype=np.int64)
                             for text in read_text(options.text)])
    n_train = len(tokens) - min(TEST_TOKENS, len(tokens) // 4)
    print(f"{len(tokens)} tokens of text, {len(tokens) - n_train} of them kept for tests", flush=True)
    documents = Documents(tokens[:n_train], tokenizer, 1)
    test = Documents(tokens[n_train:], tokenizer, 2)
    model = AdaptedLlama(gguf_llama, torch.bfloat16 if device == "cuda" else torch.float32, device)
    train(model, documents, test, options)
    for length in sorted(options.lengths):
        print(evaluate(model, test, length, 12), flush=True)
    model.save(options.output)


if __name__ == "__main__":
    main()
