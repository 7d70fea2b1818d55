"""The operator against its definition in NumPy's f64."""
import unittest

import numpy as np

import tmx
from tmx import Pattern


def to_bf16(x):
    """Round to nearest even, as bits."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def visible(pattern, n_prompt, q, k):
    """docs/patterns.md, in NumPy: q [n][1], k [1][m] positions."""
    tail = n_prompt - min(pattern.n_last, n_prompt - 1)
    kept = (q - k < pattern.n_window) | (k < pattern.n_sink)
    if pattern.kind == "triangle":
        kept |= q >= tail
    return (k <= q) & (kept if pattern.kind != "dense" else True)


def oracle(q, k, v, pattern, q_begin, n_prompt, scale):
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    n_group = q.shape[1] // k.shape[1]
    mask = visible(pattern, n_prompt, q_begin + np.arange(q.shape[0])[:, None], np.arange(k.shape[0])[None, :])
    out, lse = np.zeros(q.shape), np.empty(q.shape[:2])
    for h in range(q.shape[1]):
        scores = np.where(mask, scale * q[:, h] @ k[:, h // n_group].T, -np.inf)
        top = scores.max(axis=1, keepdims=True)
        weights = np.exp(scores - top)
        out[:, h] = weights @ v[:, h // n_group] / weights.sum(axis=1, keepdims=True)
        lse[:, h] = (top + np.log(weights.sum(axis=1, keepdims=True)))[:, 0]
    return out, lse


class Attention(unittest.TestCase):
    def setUp(self):
        self.random = np.random.default_rng(5)

    def rows(self, *shape):
        return self.random.standard_normal(shape, np.float32)

    def test_patterns_groups_chunks(self):
        patterns = [Pattern("dense"), Pattern("streaming", 1, 2), Pattern("streaming", 8, 33, 0), Pattern("triangle", 3, 17, 9),
                    Pattern("triangle", 0, 1, 0), Pattern("triangle", 500, 1, 1), Pattern("triangle")]
        for n, q_begin, heads, kv_heads, head_dim in [(1, 0, 1, 1, 1), (1, 64, 7, 1, 80), (65, 0, 8, 2, 64), (63, 70, 4, 4, 33),
                                                      (130, 1, 6, 3, 128)]:
            q, k, v = self.rows(n, heads, head_dim), self.rows(q_begin + n, kv_heads, head_dim), self.rows(q_begin + n, kv_heads, head_dim)
            for pattern in patterns:
                for n_prompt in (q_begin + n, q_begin + n + 5):
                    with self.subTest(n=n, pattern=pattern, n_prompt=n_prompt):
                        out, lse = tmx.attention(q, k, v, pattern, q_begin=q_begin, n_prompt=n_prompt, return_lse=True)
                        want, want_lse = oracle(q, k, v, pattern, q_begin, n_prompt, head_dim ** -0.5)
                        self.assertLess(np.abs(out - want).max(), 1e-5)
                        self.assertLess(np.abs(lse - want_lse).max(), 1e-5)

    def test_bf16_keys(self):
        q, k, v = self.rows(70, 4, 64), to_bf16(self.rows(70, 2, 64)), to_bf16(self.rows(70, 2, 64))
        out = tmx.attention(q, k, v, Pattern("triangle", 2, 9, 4), scale=0.25)
        want, _ = oracle(q, from_bf16(k), from_bf16(v), Pattern("triangle", 2, 9, 4), 0, 70, 0.25)
        self.assertLess(np.abs(out - want).max(), 2e-2)
        out = tmx.attention(to_bf16(q), k, v)
        self.assertEqual((out.dtype, out.shape), (np.uint16, q.shape))
        want, _ = oracle(from_bf16(to_bf16(q)), from_bf16(k), from_bf16(v), Pattern("dense"), 0, 70, 0.125)
        self.assertLess(np.abs(from_bf16(out) - want).max(), 3e-2)

    def test_views(self):
        q, k, v = self.rows(40, 4, 32), self.rows(40, 2, 32), self.rows(40, 2, 32)
        want = tmx.attention(q, k, v, Pattern("streaming", 1, 7))
        heads_first = [np.ascontiguousarray(x.transpose(1, 0, 2)).transpose(1, 0, 2) for x in (q, k, v)]
        wide = np.full((80, 8, 40), np.nan, np.float32)
        wide[::2, ::2, 3:35] = q
        reverse = q[:, :, ::-1].copy()[:, :, ::-1]
        for views in (heads_first, [wide[::2, ::2, 3:35], k, v], [reverse, k, v], [np.flip(np.flip(q, 0).copy(), 0), k, v]):
            self.assertTrue(np.array_equal(tmx.attention(*views, Pattern("streaming", 1, 7)), want))
        out = np.full((40, 4, 64), np.nan, np.float32)
        self.assertIs(tmx.attention(q, k, v, Pattern("streaming", 1, 7), out=out[:, :, :32]).base, out)
        self.assertTrue(np.array_equal(out[:, :, :32], want) and np.isnan(out[:, :, 32:]).all())

    def test_threads_and_chunks_keep_the_bits(self):
        q, k, v = self.rows(200, 4, 64), self.rows(200, 2, 64), self.rows(200, 2, 64)
        pattern = Pattern("triangle", 4, 30, 20)
        want = tmx.attention(q, k, v, pattern)
        with tmx.Pool(1) as one:
            self.assertTrue(np.array_equal(tmx.attention(q, k, v, pattern, pool=one), want))
        parts = [tmx.attention(q[a:b], k[:b], v[:b], pattern, q_begin=a, n_prompt=200) for a, b in ((0, 77), (77, 130), (130, 200))]
        self.assertTrue(np.array_equal(np.concatenate(parts), want))

    def test_refusals(self):
        q, k = self.rows(4, 4, 8), self.rows(4, 2, 8)
        for wrong, kind in [(lambda: tmx.attention(q, self.rows(4, 3, 8), self.rows(4, 3, 8)), tmx.Error),
                            (lambda: tmx.attention(q, k, k, Pattern("streaming", 1, 0)), tmx.Error),
                            (lambda: tmx.attention(q, k, k, n_prompt=3), tmx.Error),
                            (lambda: tmx.attention(q, k, k, isa="z80"), tmx.Error),
                            (lambda: tmx.attention(q, k, k[:3]), ValueError),
                            (lambda: tmx.attention(q, k, k, q_begin=1), ValueError),
                            (lambda: tmx.attention(q, k, k, q_begin=2**40), ValueError),
                            (lambda: tmx.attention(q, k, k, "diagonal"), ValueError),
                            (lambda: tmx.attention(q[0], k, k), ValueError),
                            (lambda: tmx.attention(q, k, k, out=q), ValueError),
                            (lambda: tmx.attention(q, k, k, out=np.empty((4, 4, 9), np.float32)), ValueError),
                            (lambda: tmx.attention(q.astype(np.float64), k, k), TypeError)]:
            with self.assertRaises(kind):
                wrong()

    def test_pattern(self):
        for pattern in (Pattern("dense"), Pattern("streaming", 2, 3), Pattern("triangle", 1, 4, 5)):
            mask = visible(pattern, 30, np.arange(30)[:, None], np.arange(30)[None, :])
            self.assertEqual(pattern.pairs(30), mask.sum())
            self.assertEqual(pattern.pairs(30, 4, 27), mask[4:27].sum())
            self.assertTrue(all(pattern.is_visible(30, q, k) == mask[q, k] for q in range(30) for k in range(30)))
