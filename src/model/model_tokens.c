/* model_tokens.c - the tokenizer as the public header shows it: the vocabulary of a model. */
#include "base/status.h"
#include "model/model.h"

static tmx_status refuse_text(tmx_error *err)
{
    return refuse(err, TMX_E_UNSUPPORTED, "this model was made for timing: it has no vocabulary");
}

tmx_status tmx_tokenize(const tmx_model *model, const char *text, size_t n_bytes, uint32_t flags,
                        int32_t *ids, size_t cap, size_t *n_ids, tmx_error *err)
{
    if (model == NULL || (text == NULL && n_bytes > 0) || (ids == NULL && cap > 0) || n_ids == NULL) {
        return refuse(err, TMX_E_ARG, "tmx_tokenize: NULL argument");
    }
    if (model->vocab == NULL) return refuse_text(err);
    return vocab_tokenize(model->vocab, text, n_bytes, flags, ids, cap, n_ids, err);
}

tmx_status tmx_chat_tokenize(const tmx_model *model, const tmx_chat *chat,
                             int32_t *ids, size_t cap, size_t *n_ids, tmx_error *err)
{
    if (model == NULL || chat == NULL || chat->user == NULL || (ids == NULL && cap > 0) || n_ids == NULL) {
        return refuse(err, TMX_E_ARG, "tmx_chat_tokenize: NULL argument");
    }
    if (model->vocab == NULL) return refuse_text(err);
    return vocab_chat_tokenize(model->vocab, chat, ids, cap, n_ids, err);
}

const char *tmx_chat_format(const tmx_model *model) { return model->vocab != NULL ? vocab_chat_format(model->vocab) : NULL; }
bool tmx_token_is_end(const tmx_model *model, int32_t id) { return model->vocab != NULL && vocab_is_end(model->vocab, id); }

const char *tmx_token_bytes(const tmx_model *model, int32_t id, size_t *n_bytes)
{
    if (model->vocab == NULL) return NULL;
    return vocab_token_bytes(model->vocab, id, n_bytes);
}

const char *tmx_token_name(const tmx_model *model, int32_t id)
{
    return model->vocab != NULL ? vocab_token_name(model->vocab, id) : NULL;
}

tmx_status tmx_detokenize(const tmx_model *model, tmx_detokenizer *d, int32_t id,
                          char *text, size_t size, size_t *n_written, tmx_error *err)
{
    if (model == NULL || d == NULL || text == NULL || n_written == NULL) {
        return refuse(err, TMX_E_ARG, "tmx_detokenize: NULL argument");
    }
    if (model->vocab == NULL) return refuse_text(err);
    return vocab_detokenize(model->vocab, d, id, text, size, n_written, err);
}
