/* nfc.h - text in Unicode's composed normal form (UAX 15), which some tokenizers want before they cut it into words.  In: any
 * bytes.  Out: the same text in NFC; bytes that are no UTF-8 stay as they are and part what is around them.  Linear in the
 * text. */
#ifndef TMX_TOKEN_NFC_H
#define TMX_TOKEN_NFC_H

#include "tmx.h"

/* No byte of such a text can be part of anything that NFC changes: the common case, seen quickly. */
bool nfc_is_plain(const char *text, size_t n_bytes);

/* The normalised text, memory kept from text to text; starts zeroed. */
typedef struct nfc_text {
    char *bytes;                   /* [n_bytes] */
    size_t n_bytes, cap;
    struct nfc_mark *marks;        /* [2][marks_cap]: those that wait for their base, and room to sort them */
    size_t n_marks, marks_cap;
    uint32_t base;                 /* the character they belong to */
    bool has_base;
} nfc_text;

/* TMX_E_MEMORY. */
tmx_status nfc_normalize(nfc_text *out, const char *text, size_t n_bytes, tmx_error *err);
void nfc_free(nfc_text *text);

#endif
