#include "base/sha256.h"

#include <string.h>

static const uint32_t round_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate(uint32_t x, int n) { return (x >> n) | (x << (32 - n)); }

/* One round.  Instead of moving eight variables one place on, the caller names them one place on. */
static inline void step(uint32_t a, uint32_t b, uint32_t c, uint32_t *d, uint32_t e, uint32_t f, uint32_t g, uint32_t *h,
                        uint32_t word)
{
    const uint32_t t = *h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + (g ^ (e & (f ^ g))) + word;
    *d += t;
    *h = t + (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) | (c & (a | b)));
}

static void add_block(uint32_t state[8], const unsigned char *p)
{
    uint32_t w[64];
    for (int i = 0; i < 16; i++, p += 4) {
        w[i] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
    }
    for (int i = 16; i < 64; i++) {
        const uint32_t a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + (rotate(a, 7) ^ rotate(a, 18) ^ (a >> 3)) + w[i - 7] + (rotate(b, 17) ^ rotate(b, 19) ^ (b >> 10));
    }
    for (int i = 0; i < 64; i++) w[i] += round_constants[i];
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6], h = state[7];
    for (int i = 0; i < 64; i += 8) {
        step(a, b, c, &d, e, f, g, &h, w[i]);
        step(h, a, b, &c, d, e, f, &g, w[i + 1]);
        step(g, h, a, &b, c, d, e, &f, w[i + 2]);
        step(f, g, h, &a, b, c, d, &e, w[i + 3]);
        step(e, f, g, &h, a, b, c, &d, w[i + 4]);
        step(d, e, f, &g, h, a, b, &c, w[i + 5]);
        step(c, d, e, &f, g, h, a, &b, w[i + 6]);
        step(b, c, d, &e, f, g, h, &a, w[i + 7]);
    }
    const uint32_t sums[8] = { a, b, c, d, e, f, g, h };
    for (int i = 0; i < 8; i++) state[i] += sums[i];
}

void sha256_init(sha256 *s)
{
    static const uint32_t initial[8] = {
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
    };
    memcpy(s->state, initial, sizeof s->state);
    s->n_bytes = 0;
}

void sha256_add(sha256 *s, const void *data, size_t n_bytes)
{
    const unsigned char *p = data;
    while (n_bytes > 0) {
        const size_t at = (size_t)(s->n_bytes % 64);
        const size_t take = n_bytes < 64 - at ? n_bytes : 64 - at;
        memcpy(s->block + at, p, take);
        s->n_bytes += take;
        p += take;
        n_bytes -= take;
        if (at + take == 64) add_block(s->state, s->block);
    }
}

void sha256_hex(sha256 *s, char hex[65])
{
    static const unsigned char padding[64] = { 0x80 };
    const uint64_t n_bits = s->n_bytes * 8;
    const size_t at = (size_t)(s->n_bytes % 64);
    sha256_add(s, padding, at < 56 ? 56 - at : 120 - at);
    unsigned char length[8];
    for (int i = 0; i < 8; i++) length[i] = (unsigned char)(n_bits >> (56 - 8 * i));
    sha256_add(s, length, 8);
    for (int i = 0; i < 32; i++) {
        const unsigned byte = (s->state[i / 4] >> (24 - 8 * (i % 4))) & 0xff;
        hex[2 * i] = "0123456789abcdef"[byte >> 4];
        hex[2 * i + 1] = "0123456789abcdef"[byte & 15];
    }
    hex[64] = '\0';
}
