/* sha256.h - SHA-256 (FIPS 180-4) for model fingerprints.  In: bytes in any pieces.  Out: 32 bytes. */
#ifndef TMX_BASE_SHA256_H
#define TMX_BASE_SHA256_H

#include <stddef.h>
#include <stdint.h>

typedef struct sha256 {
    uint32_t state[8];
    uint64_t n_bytes;
    unsigned char block[64];
} sha256;

void sha256_init(sha256 *s);
void sha256_add(sha256 *s, const void *data, size_t n_bytes);
void sha256_hex(sha256 *s, char hex[65]);      /* finishes; 64 lower-case digits and a NUL */

#endif
