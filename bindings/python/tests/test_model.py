"""Models, plans and sessions: the same answers as the program, the promises of tmx.h, and what is refused how."""
import os
import pickle
import signal
import subprocess
import tempfile
import threading
import time
import unittest
from pathlib import Path

import numpy as np

import tmx
from tmx import Error, Pattern, Status

SOURCE, PROGRAM, TINY = Path(os.environ["TMX_SOURCE"]), os.environ["TMX_PROGRAM"], os.environ["TMX_TINY_MODEL"]
DEMO = SOURCE / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = "A window slides over the rows; the last ones see everything. " * 4


def run_program(*arguments):
    return subprocess.run([PROGRAM, "run", *map(str, arguments)], capture_output=True, check=True).stdout


class Refusals(unittest.TestCase):
    def refuses(self, status, pattern, function, *arguments, **named):
        with self.assertRaisesRegex(Error, pattern) as caught:
            function(*arguments, **named)
        self.assertEqual(caught.exception.status, status)


class TinyModel(Refusals):
    @classmethod
    def setUpClass(cls):
        cls.model = tmx.Model(TINY)
        cls.ids = cls.model.tokenize(TEXT)

    def test_info(self):
        info = self.model.info
        self.assertEqual((info.architecture, info.n_layers, info.n_vocab, info.n_kv_heads), ("llama", 3, 257, 2))
        self.assertEqual(len(info.fingerprint), 64)
        self.assertEqual(tmx.probe_file(TINY)[3:], info[3:])
        self.assertEqual((info.device, self.model.device_name), ("cpu", ""))
        self.refuses(Status.TMX_E_ARG, "tpu", tmx.Model, TINY, device="tpu")
        self.assertIsNone(self.model.chat_format)
        memory = self.model.memory(n_ctx=100)
        self.assertEqual(memory.total_bytes, sum(memory[:4]))
        self.assertGreater(self.model.memory(n_ctx=200).kv_bytes, memory.kv_bytes)

    def test_file(self):
        with tmx.File(TINY) as file:
            self.assertEqual(file.metadata["llama.block_count"], "3")
            self.assertEqual(file.n_bytes, os.path.getsize(TINY))
            tensors = {tensor.name: tensor for tensor in file.tensors}
            self.assertEqual(tensors["blk.0.attn_k.weight"].shape, (16, 48))
            file.check_tensors()
            self.assertEqual([(part.n_bytes, part.n_tensors) for part in file.parts], [(file.n_bytes, len(tensors))])

    def test_tokens(self):
        for text in ("", "plain", "h\u00e9llo \U0001f600", b"\xff\xfe\0bytes", "\udcff", "x" * 5000):
            raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
            ids = self.model.tokenize(text)
            self.assertEqual((ids.dtype, ids.ndim), (np.int32, 1))
            self.assertEqual(b"".join(self.model.token_bytes(i) for i in ids), raw)
            self.assertEqual(self.model.detokenize(ids), raw.decode("utf-8", "replace"))
        stream = self.model.detokenizer()
        self.assertEqual([stream.feed(i) for i in self.model.tokenize("\u00e9")], ["", "\u00e9"])
        self.assertEqual(stream.feed(0xc3) + stream.flush(), "\ufffd")
        self.assertTrue(self.model.is_end(256) and not self.model.is_end(3))
        self.assertEqual((self.model.token_bytes(256), self.model.token_name(256)), (b"", "<|endoftext|>"))

    def test_generation_is_the_program_s(self):
        for plan in ("dense", "triangle:1-2"):
            session = tmx.Session(self.model, self.model.plan(plan))
            mine = self.model.detokenize(session.generate(self.ids, 40))
            theirs = run_program("-m", TINY, "-p", TEXT, "-n", 40, "--plan", plan)
            self.assertEqual(mine, theirs.decode().rstrip("\n"))
            self.assertGreater(len(mine), 10)

    def test_batch_chunks_threads_and_turns_keep_the_bits(self):
        plan = self.model.plan("triangle")
        plan.set_sizes(2, 30, 10)
        prompts = [self.ids, self.ids[:77], list(self.ids[5:6])]
        one = [tmx.Session(self.model, plan).prefill([prompt])[0] for prompt in prompts]
        batch = tmx.Session(self.model, plan, n_seqs=3, n_chunk=33).prefill(prompts, [2, 0, 1])
        self.assertTrue(np.array_equal(batch, one))
        with tmx.Pool(1) as pool, tmx.Model(TINY, pool=pool) as model:
            self.assertTrue(np.array_equal(tmx.Session(model, plan).prefill([self.ids])[0], one[0]))
        dense = tmx.Session(self.model)
        whole = dense.prefill([self.ids])[0]
        dense.rewind(100)
        self.assertTrue(np.array_equal(dense.prefill([self.ids[100:]])[0], whole))
        dense.rewind(len(self.ids) - 1)
        self.assertLess(tmx.compare_logits(whole, dense.decode(self.ids[-1])).max_abs_diff, 0.1)
        self.assertEqual((dense.n_past(), dense.n_ctx), (len(self.ids), 1024))
        dense.rewind(100)
        self.assertEqual(dense.n_reusable(len(self.ids)), 100)
        dense.reset()
        self.assertEqual((dense.n_past(), dense.timings.n_prefill_tokens), (0, 0))
        dense.set_plan(plan)
        self.assertTrue(np.array_equal(dense.prefill([self.ids])[0], one[0]))
        self.assertGreater(dense.layer_attention_ms(0), 0)

    def test_sampler(self):
        session = tmx.Session(self.model)
        answers = [list(session.generate(self.ids, 20, sampler=tmx.Sampler(self.model, temperature=1, seed=seed, repeat_penalty=1.1)))
                   for seed in (1, 1, 2) if session.reset() is None]
        self.assertEqual(answers[0], answers[1])
        self.assertNotEqual(answers[0], answers[2])
        logits = np.zeros(257, np.float32)
        logits[[7, 9]] = 1
        self.assertEqual(tmx.Sampler(self.model).next(logits), 7)
        self.assertEqual(tmx.compare_logits(logits, logits)[:4], (0, 0, 7, 7))

    def test_plans(self):
        plan = self.model.plan("triangle:1-2")
        plan.set_sizes(n_window=64)
        plan.note, plan.min_tokens = "by hand", 100
        self.assertEqual(plan.layers[0].kind, "dense")
        self.assertEqual(plan.layers[2], Pattern("triangle", 8, 64, 128))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "plan.json"
            plan.save(path)
            again = tmx.Plan.load(path, self.model)
            self.assertEqual((again.layers, again.note, again.min_tokens, str(again)),
                             (plan.layers, "by hand", 100, str(plan)))
            self.refuses(Status.TMX_E_ARG, "dense", tmx.Plan.load, Path(folder) / "dense", self.model)
        self.assertEqual(plan.own_window(2), 0)
        dynamic = self.model.plan("flexprefill")
        dynamic.estimate_rows = 512
        self.assertEqual((dynamic.estimate_rows, plan.estimate_rows), (512, 0))
        self.refuses(Status.TMX_E_ARG, "estimate_rows: 100", setattr, dynamic, "estimate_rows", 100)
        self.assertIn("smollm2-135m-instruct", tmx.presets())

    def test_progress(self):
        seen = []
        session = tmx.Session(self.model, n_chunk=16, progress=lambda *state: seen.append(state))
        session.prefill([self.ids])
        self.assertEqual(seen[-1][0], seen[-1][1])
        stopped = tmx.Session(self.model, n_chunk=16, progress=lambda n_done, _: n_done < 50)
        self.refuses(Status.TMX_E_CANCELLED, "", stopped.prefill, [self.ids])
        self.assertEqual(stopped.n_past(), 0)
        raising = tmx.Session(self.model, progress=lambda *_: 1 // 0)
        with self.assertRaises(ZeroDivisionError):
            raising.prefill([self.ids])
        nested = tmx.Session(self.model, progress=lambda *_: session.decode(1))
        with self.assertRaisesRegex(RuntimeError, "callback"):
            nested.prefill([self.ids])
        session.decode(1)

    def test_refusals(self):
        model, session = self.model, tmx.Session(self.model, n_ctx=50)
        self.refuses(Status.TMX_E_IO, "nowhere", tmx.Model, "/nowhere.gguf")
        self.refuses(Status.TMX_E_FORMAT, "", tmx.Model, SOURCE / "LICENSE")
        self.refuses(Status.TMX_E_FORMAT, "", tmx.probe_file, SOURCE / "LICENSE")
        self.refuses(Status.TMX_E_ARG, "5", model.plan, "triangle:1-5")
        self.refuses(Status.TMX_E_UNSUPPORTED, "qwen3-8b", model.plan, "preset:qwen3-8b")
        self.refuses(Status.TMX_E_UNSUPPORTED, "", model.chat, "hello")
        self.refuses(Status.TMX_E_ARG, "", tmx.Session, model, n_ctx=5000)
        self.refuses(Status.TMX_E_ARG, "", tmx.Pool, -1)
        self.refuses(Status.TMX_E_ARG, "", tmx.Sampler, model, temperature=float("nan"))
        self.refuses(Status.TMX_E_FULL, "50", session.prefill, [self.ids])
        self.refuses(Status.TMX_E_ARG, "", session.prefill, [[1, 257]])
        self.refuses(Status.TMX_E_ARG, "", session.prefill, [[-1]])
        self.refuses(Status.TMX_E_ARG, "", session.prefill, [[]])
        self.refuses(Status.TMX_E_ARG, "", session.prefill, [[1], [2]])
        self.refuses(Status.TMX_E_ARG, "", session.rewind, 3)
        self.assertEqual(session.n_past(), 0)
        for kind, wrong in [(TypeError, lambda: session.prefill([1, 2])), (TypeError, lambda: session.prefill([[0.5]])),
                            (ValueError, lambda: session.prefill([[2**40]])), (ValueError, lambda: session.decode(2**32)),
                            (ValueError, lambda: session.prefill([[1]], [0, 1])), (ValueError, lambda: model.chat("a\0b")),
                            (ValueError, lambda: tmx.Model(TINY, compute="f64")), (ValueError, lambda: tmx.Model("a\0b")),
                            (IndexError, lambda: session.n_past(1)), (IndexError, lambda: model.token_bytes(257)),
                            (ValueError, lambda: tmx.Sampler(model).next(np.zeros(3))),
                            (ValueError, lambda: tmx.Sampler(model, seed=-1)), (TypeError, lambda: session.decode(1.5))]:
            with self.assertRaises(kind):
                wrong()

    def test_error_travels(self):
        error = pickle.loads(pickle.dumps(Error(Status.TMX_E_IO, "no such file")))
        self.assertEqual((error.status, str(error)), (Status.TMX_E_IO, "no such file"))

    def test_closed(self):
        with tmx.Model(TINY) as model:
            plan, session = model.plan("triangle"), tmx.Session(model)
        want = tmx.Session(self.model).prefill([self.ids])
        self.assertTrue(np.array_equal(session.prefill([self.ids]), want))     # what was made from it lives on
        plan.close(), session.close(), session.close()
        for closed in (lambda: model.plan(), lambda: tmx.Session(model), lambda: session.prefill([self.ids]), lambda: plan.layers):
            with self.assertRaisesRegex(ValueError, "closed"):
                closed()

    def test_sessions_of_several_threads(self):
        want = tmx.Session(self.model).prefill([self.ids])
        right = []

        def work():
            session = tmx.Session(self.model)
            for _ in range(5):
                session.reset()
                right.append(np.array_equal(session.prefill([self.ids]), want))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(right, [True] * 20)


@unittest.skipUnless(DEMO.exists(), "needs the demo model: scripts/fetch-models.sh")
class DemoModel(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = tmx.Model(DEMO)

    def test_answer_is_the_program_s(self):
        question = "Name three colours of the rainbow."
        session = tmx.Session(self.model, self.model.plan("preset:smollm2-135m-instruct"), n_ctx=256)
        mine = self.model.detokenize(session.generate(self.model.chat(question, system="Be brief."), 24))
        theirs = run_program("-m", DEMO, "--chat", "--system", "Be brief.", "-p", question, "-n", 24, "--plan",
                             "preset:smollm2-135m-instruct")
        self.assertEqual(mine, theirs.decode().rstrip("\n"))
        self.assertGreater(len(mine), 10)

    def test_turns(self):
        model = self.model
        first = model.chat("One?", system="Be brief.")
        both = model.chat("Two?", system="Be brief.", turns=[("One?", "1")])
        self.assertTrue(np.array_equal(both[:len(first)], first))
        self.assertIn("1", model.detokenize(both[len(first):]))
        self.assertFalse(np.array_equal(both, model.chat("Two?", system="Be brief.")))

    def test_ctrl_c_stops_a_prefill(self):
        session = tmx.Session(self.model)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            start = time.monotonic()
            with self.assertRaises(KeyboardInterrupt):
                session.prefill([self.model.tokenize("word " * 7000)])
            self.assertLess(time.monotonic() - start, 10)
            self.assertIs(signal.getsignal(signal.SIGINT), signal.default_int_handler)
        finally:
            signal.signal(signal.SIGINT, before)
        self.assertEqual(session.n_past(), 0)
        self.assertEqual(session.prefill([[1]]).shape, (1, self.model.info.n_vocab))
