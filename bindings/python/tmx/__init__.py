"""tmx: fast long-context LLM prefill with Triangle attention, on NumPy arrays.

    import tmx
    with tmx.Model("model.gguf") as model:
        plan = model.plan("triangle:16-31")
        session = tmx.Session(model, plan, n_ctx=16384)
        ids = list(session.generate(model.chat("What does the document say?"), 64))
        print(model.detokenize(ids))

A Model is a GGUF file, a Plan names a pattern of attention for every layer, a Session holds the KV cache.  Failures of the
library are tmx.Error with a status and one line of text; what Python can see is wrong is TypeError or ValueError.  include/tmx.h
says what each call promises; everything here passes it on.

The library is found through the environment variable TMX_LIBRARY, beside the package, or in the system, in this order.
"""
from ._abi import Status
from ._attention import attention
from ._handle import Pool, default_pool
from ._library import Error, lib as _lib
from ._model import Detokenizer, File, Memory, Model, ModelInfo, Part, Pattern, Plan, Tensor, presets, probe_file
from ._session import Agreement, Sampler, Session, Timings, compare_logits
from ._version import __version__

__all__ = ["Agreement", "Detokenizer", "Error", "File", "Memory", "Model", "ModelInfo", "Part", "Pattern", "Plan", "Pool", "Sampler",
           "Session", "Status", "Tensor", "Timings", "attention", "compare_logits", "default_pool", "presets", "probe_file",
           "library_version"]


def library_version() -> str:
    """Of the libtmx that was loaded."""
    return _lib.tmx_version().decode()
