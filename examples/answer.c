/* answer.c - answer MODEL PLAN QUESTION: a model answers a question, prefilled by a plan ("dense", "triangle:16-31", a file).
 *
 *     cc answer.c $(pkg-config --cflags --libs trianglemix) -o answer */
#include <stdio.h>
#include <stdlib.h>
#include <tmx.h>

enum { MAX_ANSWER = 64 };

int main(int argc, char **argv)
{
    tmx_pool *pool = NULL; tmx_model *model = NULL; tmx_plan *plan = NULL; tmx_session *session = NULL;
    int32_t *ids = NULL, token = 0;
    float *logits = NULL;
    tmx_error err = { 0 };
    if (argc != 4) return fprintf(stderr, "usage: answer MODEL PLAN QUESTION\n"), 1;
    if (tmx_pool_create(&pool, 0, &err) || tmx_model_open(&model, argv[1], NULL, pool, &err)) goto done;
    const tmx_model_info *info = tmx_model_info_get(model);

    const tmx_chat chat = { .user = argv[3] };
    size_t n_ids = 0;
    if (tmx_chat_tokenize(model, &chat, NULL, 0, &n_ids, &err)) goto done;     /* how many? */
    ids = malloc(n_ids * sizeof *ids);
    logits = malloc((size_t)info->n_vocab * sizeof *logits);
    if (ids == NULL || logits == NULL) err = (tmx_error){ TMX_E_MEMORY, "out of memory" };
    if (err.code || tmx_chat_tokenize(model, &chat, ids, n_ids, &n_ids, &err)) goto done;

    if (tmx_plan_parse(&plan, argv[2], info, &err)) goto done;
    const tmx_session_params params = { .n_ctx = (int32_t)n_ids + MAX_ANSWER };
    if (tmx_session_create(&session, model, plan, pool, &params, &err)) goto done;
    const tmx_prompt prompt = { .tokens = ids, .n_tokens = (int32_t)n_ids, .logits = logits };
    if (tmx_prefill(session, &prompt, 1, &err)) goto done;

    tmx_detokenizer stream = { 0 };
    for (int i = 0; i < MAX_ANSWER; i++) {
        char text[1024];
        size_t n_text;
        for (int32_t id = token = 0; id < info->n_vocab; id++) if (logits[id] > logits[token]) token = id;
        if (tmx_token_is_end(model, token) || tmx_detokenize(model, &stream, token, text, sizeof text, &n_text, &err)) break;
        printf("%s", text);
        if (tmx_decode(session, 0, token, logits, &err)) break;
    }
    printf("\n");
done:
    if (err.code != TMX_OK) fprintf(stderr, "answer: %s\n", err.text);
    tmx_session_free(session), tmx_plan_free(plan), tmx_model_close(model), tmx_pool_free(pool);
    free(ids), free(logits);
    return err.code != TMX_OK;
}
