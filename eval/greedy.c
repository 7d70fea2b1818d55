#include "greedy.h"

#include "fault.h"

#include <stdlib.h>

int32_t greedy_token(const float *logits, int32_t n_vocab)
{
    int32_t best = 0;
    for (int32_t i = 1; i < n_vocab; i++) {
        if (logits[i] > logits[best]) best = i;
    }
    return best;
}

tmx_status greedy_text(const tmx_model *model, const int32_t *ids, int32_t n_ids, text_buf *text, tmx_error *err)
{
    tmx_detokenizer d = { 0 };
    text->n_bytes = 0;
    text_add(text, "");
    for (int32_t i = 0; i <= n_ids; i++) {
        const int32_t id = i < n_ids ? ids[i] : -1;    /* -1: bytes that never became a character */
        char part[512], *to = part;
        size_t n_token = 0, n_written = 0, size = sizeof part;
        if (id >= 0) tmx_token_bytes(model, id, &n_token);
        if (2 * n_token + 16 > size) {
            size = 2 * n_token + 16;
            to = malloc(size);
            if (to == NULL) return fault_memory(err, "the text of an answer");
        }
        const tmx_status status = tmx_detokenize(model, &d, id, to, size, &n_written, err);
        if (status == TMX_OK) text_add_n(text, to, n_written);
        if (to != part) free(to);
        if (status != TMX_OK) return status;
    }
    return text->has_failed ? fault_memory(err, "the text of an answer") : TMX_OK;
}
