"""How objects end, and how the library is found: each case is a Python process of its own."""
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import unittest
from pathlib import Path

import tmx

TINY = os.environ["TMX_TINY_MODEL"]


def python(code, **environment):
    """With TMX_LIBRARY only if it is named here."""
    inherited = {name: value for name, value in os.environ.items() if name != "TMX_LIBRARY"}
    return subprocess.run([sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(code)], capture_output=True, text=True,
                          timeout=60, env={**inherited, **environment})


class Endings(unittest.TestCase):
    def ends_well(self, code):
        done = python(f"import gc, os, sys, tmx\nTINY = {TINY!r}\n" + textwrap.dedent(code) + "\nprint('end')")
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "end\n", ""))

    def test_parents_first(self):
        self.ends_well("""
            pool = tmx.Pool(2)
            model = tmx.Model(TINY, pool=pool)
            session = tmx.Session(model)
            del pool, model
            gc.collect()
            assert session.prefill([[1, 2, 3]]).shape == (1, 257)
            session.close()
        """)

    def test_in_a_cycle(self):
        # The library's own order is seen by wrapping its functions: sessions, then the model, then the pool.
        self.ends_well("""
            from tmx._library import lib
            order = []
            for name in ("tmx_session_free", "tmx_model_close", "tmx_pool_free"):
                def free(pointer, function=getattr(lib, name), name=name):
                    order.append(name)
                    function(pointer)
                setattr(lib, name, free)
            class Knot: pass
            for _ in range(20):
                knot = Knot()
                knot.self, knot.pool = knot, tmx.Pool(1)
                knot.model = tmx.Model(TINY, pool=knot.pool)
                knot.sessions = [tmx.Session(knot.model) for _ in range(3)]
                knot.model.knot = knot.sessions[0].knot = knot
                del knot
                gc.collect()
                assert order == 3 * ["tmx_session_free"] + ["tmx_model_close", "tmx_pool_free"], order
                order.clear()
        """)

    def test_at_exit(self):
        self.ends_well("""
            model = tmx.Model(TINY)
            sessions = [tmx.Session(model, model.plan("triangle")) for _ in range(3)]
            answer = sessions[1].generate([1, 2, 3], 5)
            next(answer)
        """)

    def test_in_a_forked_child(self):
        self.ends_well("""
            model = tmx.Model(TINY)
            session = tmx.Session(model)
            child = os.fork()
            if child == 0:
                with tmx.Model(TINY) as own:
                    assert tmx.Session(own).prefill([[1, 2]]).shape == (1, 257)
                del session, model
                gc.collect()
                sys.exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        """)


class Finding(unittest.TestCase):
    def refused(self, pattern, **environment):
        done = python("import tmx", **environment)
        self.assertNotEqual(done.returncode, 0)
        self.assertRegex(done.stderr.splitlines()[-1], pattern)

    def test_named(self):
        beside = Path(tmx.__file__).with_name("libtmx.so.0")
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(beside, f"{folder}/mine.so")
            done = python("import tmx; print(open('/proc/self/maps').read())", TMX_LIBRARY=f"{folder}/mine.so")
            self.assertIn(f"{folder}/mine.so", done.stdout)

    def test_missing(self):
        self.refused(r"^ImportError: .*not found.*/nowhere/x.so \(TMX_LIBRARY\)", TMX_LIBRARY="/nowhere/x.so")

    def test_nowhere(self):
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(Path(tmx.__file__).parent, f"{folder}/tmx", ignore=shutil.ignore_patterns("*.so.0"))
            if python("import tmx", PYTHONPATH=folder).returncode == 0:
                self.skipTest("libtmx is installed in the system")
            self.refused(r"^ImportError: .*beside the package.*system", PYTHONPATH=folder)

    def test_another_library(self):
        with tempfile.TemporaryDirectory() as folder:
            for body, pattern in [("", "no.* symbol|undefined symbol"), ('"9.9.0"', "version 9.9.0, these bindings are for"),
                                  (f'"{tmx.__version__}"', "older than these bindings")]:
                source = f"const char *tmx_version(void); const char *tmx_version(void) {{ return {body}; }}" if body else "int x;"
                subprocess.run(["cc", "-shared", "-x", "c", "-", "-o", f"{folder}/other.so"], input=source, text=True, check=True)
                self.refused(pattern, TMX_LIBRARY=f"{folder}/other.so")
