"""engines.py ENGINE MODEL THREADS LONGEST FD - one engine that answers requests; run.py starts it and speaks to it.

Requests and answers are lines of JSON on standard input and on file descriptor FD:
    {"ids": [...], "n_gen": G}          -> {"ttft_s": X, "step_s": Y, "first": ID}      step_s: of one decoded token; null for G = 0
    {"n": N, "dim": D, "group": G, "type": "bf16"}    (torch-sdpa)      -> {"ms": X}
The first line answered is {"ready": "what runs"}.  Whatever the engine itself prints goes to standard error."""
import json
import os
import sys
import time


def has_bf16_products():
    with open("/proc/cpuinfo") as f:
        return "avx512_bf16" in f.read()


class Llama:
    """llama.cpp; the prompt in one logical batch, in pieces of 512, its default."""

    def __init__(self, path, n_threads, n_longest, is_flash):
        import llama_cpp
        self.llama = llama_cpp.Llama(path, n_ctx=n_longest, n_batch=n_longest, n_ubatch=512, n_threads=n_threads,
                                     n_threads_batch=n_threads, flash_attn=is_flash, verbose=False)
        self.name = "llama-cpp-python " + llama_cpp.__version__

    def run(self, ids, n_gen):
        import llama_cpp
        self.llama.reset()
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.llama.ctx), True)
        begin = time.perf_counter()
        self.llama.eval(ids)
        prefilled = time.perf_counter()
        logits = llama_cpp.llama_get_logits_ith(self.llama.ctx, -1)
        first = max(range(self.llama.n_vocab()), key=lambda i: logits[i])
        decoding = time.perf_counter()
        for i in range(n_gen):
            self.llama.eval([ids[i]])
        end = time.perf_counter()
        return {"ttft_s": prefilled - begin, "step_s": (end - decoding) / n_gen if n_gen else None, "first": first}


class OpenVino:
    """OpenVINO GenAI on the GGUF file itself; the whole prompt in one step.  TRISHAPE with the sizes of our triangle, the sinks rounded up
    to its blocks of 32; XATTENTION as it comes."""

    def __init__(self, path, n_threads, n_longest, mode):
        import openvino_genai as genai
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = n_longest
        scheduler.cache_size = 2
        if mode is not None:
            scheduler.use_sparse_attention = True
            sparse = genai.SparseAttentionConfig(mode=getattr(genai.SparseAttentionMode, mode), num_last_dense_tokens_in_prefill=128)
            if mode == "TRISHAPE":
                sparse.num_retained_start_tokens_in_cache = 32
                sparse.num_retained_recent_tokens_in_cache = 512
            scheduler.sparse_attention_config = sparse
        self.genai = genai
        self.pipeline = genai.LLMPipeline(path, "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=n_threads)
        self.name = "OpenVINO GenAI " + genai.__version__ + (", " + mode if mode else "")

    def run(self, ids, n_gen):
        import numpy
        import openvino
        config = self.genai.GenerationConfig()
        config.max_new_tokens = 1 + n_gen
        config.ignore_eos = True
        config.do_sample = False
        result = self.pipeline.generate(openvino.Tensor(numpy.array([ids], dtype=numpy.int64)), config)
        metrics = result.perf_metrics
        return {"ttft_s": metrics.get_ttft().mean * 1e-3, "step_s": metrics.get_tpot().mean * 1e-3 if n_gen else None,
                "first": int(result.tokens[0][0])}


class Transformers:
    """transformers with torch's attention; weights expanded to bf16 where the CPU multiplies it, else f32."""

    def __init__(self, path, n_threads, _n_longest):
        import torch
        import transformers
        torch.set_num_threads(n_threads)
        dtype = torch.bfloat16 if has_bf16_products() else torch.float32
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            os.path.dirname(os.path.abspath(path)), gguf_file=os.path.basename(path), dtype=dtype, attn_implementation="sdpa").eval()
        self.name = f"transformers {transformers.__version__}, torch {torch.__version__}, {str(dtype).split('.')[1]}"

    def run(self, ids, n_gen):
        import torch
        with torch.inference_mode():
            begin = time.perf_counter()
            result = self.model(input_ids=torch.tensor([ids]), use_cache=True, logits_to_keep=1)
            first = int(result.logits[0, -1].argmax())
            prefilled = time.perf_counter()
            for i in range(n_gen):
                result = self.model(input_ids=torch.tensor([[ids[i]]]), past_key_values=result.past_key_values, use_cache=True)
            end = time.perf_counter()
        return {"ttft_s": prefilled - begin, "step_s": (end - prefilled) / n_gen if n_gen else None, "first": first}


class TorchSdpa:
    """torch's attention kernel alone, causal, two KV heads, grouped queries."""

    def __init__(self, _path, n_threads, _n_longest):
        import torch
        torch.set_num_threads(n_threads)
        self.name = "torch " + torch.__version__

    def attend(self, n, dim, group, kind):
        import torch
        dtype = torch.bfloat16 if kind == "bf16" else torch.float32
        q = torch.randn(1, 2 * group, n, dim).to(dtype)
        k, v = torch.randn(1, 2, n, dim).to(dtype), torch.randn(1, 2, n, dim).to(dtype)
        with torch.inference_mode():
            times = []
            for _ in range(2):                 # the first warms up
                begin = time.perf_counter()
                torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
                times.append(time.perf_counter() - begin)
        return {"ms": 1e3 * times[1]}


def create(engine, path, n_threads, n_longest):
    if engine in ("llama.cpp", "llama.cpp-fa"):
        return Llama(path, n_threads, n_longest, engine.endswith("-fa"))
    if engine.startswith("openvino"):
        return OpenVino(path, n_threads, n_longest, {"openvino": None, "openvino-trishape": "TRISHAPE",
                                                     "openvino-xattention": "XATTENTION"}[engine])
    if engine == "transformers":
        return Transformers(path, n_threads, n_longest)
    if engine == "torch-sdpa":
        return TorchSdpa(path, n_threads, n_longest)
    raise SystemExit(f"engines.py: no engine '{engine}'")


def main():
    engine, path, n_threads, n_longest = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    answers = os.fdopen(int(sys.argv[5]), "w")
    os.dup2(2, 1)                              # libraries print where they like
    peer = create(engine, path, n_threads, n_longest)
    print(json.dumps({"ready": peer.name}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "ids" in request:
            answer = peer.run(request["ids"], request["n_gen"])
        else:
            answer = peer.attend(request["n"], request["dim"], request["group"], request["type"])
        print(json.dumps(answer), file=answers, flush=True)


main()
