/* rooms: run; wrap: cuda_weights_attach */
/* test_open_random.c - models without a file: their shapes, by the number of weights that the published models have, and what is
 * refused.  The weights themselves need a GPU; here their place stays empty. */
#include "run/cuda_weights.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

tmx_status __wrap_cuda_weights_attach(tmx_model *model, tmx_pool *pool, tmx_error *err);
tmx_status __wrap_cuda_weights_attach(tmx_model *model, tmx_pool *pool, tmx_error *err)
{
    (void)pool, (void)err;
    assert_int_equal(cuda_model_check(&model->info, err), TMX_OK);
    return TMX_OK;
}

static void shapes_are_those_of_the_published_models(void **state)
{
    (void)state;
    static const struct { const char *shape, *architecture; uint64_t n_params; int32_t n_layers; } cases[] = {
        { "llama-3.1-8b", "llama", 8030261248, 32 },
        { "qwen2.5-7b", "qwen2", 7615616512, 28 },
        { "qwen3-8b", "qwen3", 8190735360, 36 },
        { "llama-3.1-70b-one-layer", "llama", 70553706496 - 78 * (uint64_t)855654400, 2 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tmx_model *model = NULL;
        tmx_error err = { 0 };
        if (tmx_model_open_random(&model, cases[i].shape, NULL, NULL, &err) != TMX_OK) fail_msg("%s", err.text);
        const tmx_model_info *m = tmx_model_info_get(model);
        assert_string_equal(m->architecture, cases[i].architecture);
        assert_string_equal(m->device, "cuda:0");
        assert_int_equal(m->n_params, cases[i].n_params);
        assert_int_equal(m->n_layers, cases[i].n_layers);
        assert_non_null(strstr(m->name, cases[i].shape));
        const rope_table *rope = model_rope(model, m->n_layers - 1, 100000);
        assert_int_equal(rope->n_pairs, 64);
        assert_true(rope->factor == 1 && rope->frequency[0] == 1 && rope->frequency[63] > 0);
        tmx_model_close(model);
    }
}

static void what_cannot_be_made_is_refused(void **state)
{
    (void)state;
    tmx_model *model = NULL;
    tmx_error err = { 0 };
    assert_int_equal(tmx_model_open_random(&model, "llama-9", NULL, NULL, &err), TMX_E_ARG);
    assert_string_equal(err.text, "random weights: 'llama-9' is not one of llama-3.1-8b, qwen2.5-7b, qwen3-8b, llama-3.1-70b-one-layer");
    assert_int_equal(tmx_model_open_random(&model, "qwen3-8b", &(tmx_model_params){ .device = "cpu" }, NULL, &err), TMX_E_UNSUPPORTED);
    assert_string_equal(err.text, "random weights: made on a GPU only");
    assert_int_equal(tmx_model_open_random(&model, "qwen3-8b", &(tmx_model_params){ .device = "tpu" }, NULL, &err), TMX_E_ARG);
    assert_int_equal(tmx_model_open_random(&model, NULL, NULL, NULL, &err), TMX_E_ARG);
    assert_null(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shapes_are_those_of_the_published_models),
        cmocka_unit_test(what_cannot_be_made_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
