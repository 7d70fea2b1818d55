/* rooms: run eval */
/* test_eval_score.c - scorers and statistics on cases worked out by hand. */
#include "eval/score.h"
#include "eval/stats.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

typedef struct score_case {
    task_metric metric;
    const char *text;
    const char *answers[4];
    double score;
} score_case;

static void scores_by_hand(void **state)
{
    (void)state;
    static const score_case cases[] = {
        { TASK_MATCH_ALL, "739154.", { "739154" }, 1 },
        { TASK_MATCH_ALL, "It is 739155.", { "739154" }, 0 },
        { TASK_MATCH_ALL, "", { "x" }, 0 },
        { TASK_MATCH_ALL, " \n\t\x01 ", { "" }, 0 },               /* no credit for an empty answer */
        { TASK_MATCH_PART, "", { "", "x" }, 0 },
        { TASK_MATCH_ALL, "anything", { "" }, 0 },                 /* nor for an empty reference */
        { TASK_MATCH_ALL, "1 and 3", { "1", "2", "3", "4" }, 0.5 },
        { TASK_MATCH_PART, "1 and 3", { "7", "3" }, 1 },
        { TASK_MATCH_PART, "1 and 3", { "7", "8" }, 0 },
        { TASK_MATCH_ALL, "AMBER-Acorn", { "amber-acorn" }, 1 },
        { TASK_MATCH_ALL, "line\x02one", { "line\none" }, 1 },     /* control characters are line ends */
        { TASK_MATCH_ALL, "12345", { "234" }, 1 },                 /* as defined: also inside a longer number */
        { TASK_F1, "The cat sat.", { "a cat sat down" }, 0.8 },            /* cat sat: 2/2, 2/3 */
        { TASK_F1, "the a an", { "the" }, 0 },                     /* only articles: no word */
        { TASK_F1, "", { "cat" }, 0 },
        { TASK_F1, "cat cat dog", { "cat dog dog" }, 2.0 / 3 },            /* cat once, dog once: 2/3, 2/3 */
        { TASK_F1, "paris", { "London", "Paris!" }, 1 },
        { TASK_F1, "don't", { "dont" }, 1 },
        { TASK_ROUGE_L, "one two three four", { "two four five" }, 4.0 / 7 },      /* two four: 2/4, 2/3 */
        { TASK_ROUGE_L, "four two", { "two four" }, 0.5 },         /* order counts: 1/2, 1/2 */
        { TASK_F1, "four two", { "two four" }, 1 },
        { TASK_ROUGE_L, "", { "two" }, 0 },
        { TASK_ROUGE_L, "x", { "y", "x" }, 1 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const score_case *c = &cases[i];
        char *answers[4];
        int32_t n = 0;
        while (n < 4 && c->answers[n] != NULL) { answers[n] = strdup(c->answers[n]); n++; }
        double score = -1;
        assert_int_equal(score_answer(c->metric, c->text, answers, n, &score, NULL), TMX_OK);
        if (fabs(score - c->score) > 1e-12) fail_msg("case %zu '%s': %g, expected %g", i, c->text, score, c->score);
        while (n > 0) free(answers[--n]);
    }
    assert_string_equal(score_name(TASK_ROUGE_L), "rouge_l");
}

static void means_and_medians(void **state)
{
    (void)state;
    double x[] = { 3, 1, 2, 10 };
    assert_true(mean_of(x, 4) == 4.0 && mean_of(x, 0) == 0.0);
    assert_true(median_of(x, 4) == 2.5 && median_of(x, 3) == 2.0 && median_of(x, 1) == 1.0 && median_of(x, 0) == 0.0);
}

static void near(double x, double expected)
{
    if (!(fabs(x - expected) <= 5e-5)) fail_msg("%.8g, expected %.8g", x, expected);
}

static void intervals_by_hand(void **state)
{
    (void)state;
    double d[100] = { 0 };
    interval i = paired_interval(d, 10);       /* m 12, var 1/12: 1.95996 sqrt(1/144) = 0.16333 */
    near(i.low, -0.16333);
    near(i.high, 0.16333);
    d[0] = d[1] = d[2] = -1;
    i = paired_interval(d, 10);                /* mean -3/12, var 4/12 - 1/16 = 0.270833; half 1.95996 sqrt(0.0225694) */
    near(i.low, -0.25 - 0.294450);
    near(i.high, -0.25 + 0.294450);
    /* Agresti and Min's own form for 0/1 answers: b = 3, c = 0 gives (c - b) / (n + 2) and the same half width */
    i = paired_interval(d, 0);
    assert_true(i.low == -1.0 && i.high == 1.0);
    for (int k = 0; k < 100; k++) d[k] = 1;
    i = paired_interval(d, 1);
    assert_true(i.high == 1.0 && i.low > -1.0);

    const double x[] = { 1, 2, 3, 4, 5 };
    i = mean_interval(x, 5);                   /* t 2.776445 * sqrt(2.5 / 5) */
    near(i.low, 3 - 1.963243);
    near(i.high, 3 + 1.963243);
    i = mean_interval(x, 2);                   /* t 12.706205 * 0.5 */
    near(i.high, 1.5 + 6.353102);
    i = mean_interval(x, 3);                   /* t 4.302653 / sqrt(3) */
    near(i.high, 2 + 2.484138);
    i = mean_interval(x, 4);                   /* t 3.182446 * sqrt(5/3/4) */
    assert_true(fabs(i.high - (2.5 + 2.054260)) < 1e-3);
    double many[50];
    for (int k = 0; k < 50; k++) many[k] = k % 2;
    i = mean_interval(many, 50);               /* t 2.009575 * sqrt(12.5 / 49 / 50) */
    near(i.high, 0.5 + 0.143541);
    i = mean_interval(x, 1);
    assert_true(isinf(i.low) && isinf(i.high));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scores_by_hand),
        cmocka_unit_test(means_and_medians),
        cmocka_unit_test(intervals_by_hand),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
