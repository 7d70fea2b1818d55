#include "pattern/key_lines.h"

#include "base/num.h"
#include "pattern/pattern.h"

#include <assert.h>

/* Where the keys end that a distance covers; not clipped by the prompt. */
static int32_t end_of(const line_runs *it) { return max_i32(it->t + LINE_BLOCK - it->head->distances[it->next], LINE_BLOCK); }

static void take_run(line_runs *it)
{
    const head_keys *head = it->head;
    it->begin = it->end = it->k_end;
    if (it->next == head->n_distances) return;
    it->end = end_of(it);
    it->begin = it->end - LINE_BLOCK;
    while (++it->next < head->n_distances) {
        const int32_t end = end_of(it);
        if (end > it->end + LINE_BLOCK) return;
        if (end > it->end) it->end += LINE_BLOCK;
    }
}

line_runs line_runs_of(const head_keys *head, int32_t t)
{
    assert(t % LINE_BLOCK == 0 && head->kind != HEAD_WINDOW);
    line_runs it = { .head = head, .t = t, .k_end = min_i32(head->n, t + LINE_BLOCK) };
    if (head->kind == HEAD_LINES) {
        while (it.next < head->n_distances && head->distances[it.next] >= t + LINE_BLOCK) it.next++;
        take_run(&it);
    }
    return it;
}

static bool next_of_lines(line_runs *it, int32_t *k_begin, int32_t *k_end)
{
    const head_keys *head = it->head;
    if (it->begin >= it->k_end) return false;          /* columns behind the last run, which ends with the rows, are none of theirs */
    if (it->next_column < head->n_columns && head->columns[it->next_column] < it->begin) {
        *k_begin = head->columns[it->next_column++];
        *k_end = *k_begin + 1;
        return true;
    }
    *k_begin = it->begin;
    *k_end = min_i32(it->end, it->k_end);
    while (it->next_column < head->n_columns && head->columns[it->next_column] < it->end) it->next_column++;
    take_run(it);
    return true;
}

static bool next_of_blocks(line_runs *it, int32_t *k_begin, int32_t *k_end)
{
    const int32_t own = it->t / LINE_BLOCK;
    const uint64_t *row = it->head->blocks + (size_t)own * (size_t)it->head->n_words;
    while (it->next <= own && !(row[it->next / 64] >> it->next % 64 & 1)) it->next++;
    if (it->next > own) return false;
    *k_begin = it->next * LINE_BLOCK;
    while (it->next <= own && (row[it->next / 64] >> it->next % 64 & 1)) it->next++;
    *k_end = min_i32(it->next * LINE_BLOCK, it->k_end);
    return true;
}

bool line_runs_next(line_runs *it, int32_t *k_begin, int32_t *k_end)
{
    if (it->head->kind == HEAD_LINES) return next_of_lines(it, k_begin, k_end);
    if (it->head->kind == HEAD_BLOCKS) return next_of_blocks(it, k_begin, k_end);
    if (it->next > 0) return false;
    it->next++;
    *k_begin = 0;
    *k_end = it->k_end;
    return true;
}

static tmx_pattern window_of(const head_keys *head)
{
    return (tmx_pattern){ .kind = TMX_PATTERN_STREAMING, .n_sink = head->n_sink, .n_window = head->n_window };
}

bool head_keys_visible(const head_keys *head, int32_t q_pos, int32_t k_pos)
{
    if (k_pos < 0 || k_pos > q_pos) return false;
    if (head->kind == HEAD_WINDOW) {
        const tmx_pattern window = window_of(head);
        return pattern_is_visible(&window, head->n, q_pos, k_pos);
    }
    line_runs it = line_runs_of(head, q_pos - q_pos % LINE_BLOCK);
    for (int32_t begin, end; line_runs_next(&it, &begin, &end);) {
        if (k_pos < end) return k_pos >= begin;
    }
    return false;
}

int64_t head_keys_pairs(const head_keys *head, int32_t q_begin)
{
    if (head->kind == HEAD_WINDOW) {
        const tmx_pattern window = window_of(head);
        return tmx_pattern_pairs(&window, head->n, q_begin, head->n);
    }
    int64_t n = 0;
    for (int32_t t = q_begin; t < head->n; t += LINE_BLOCK) {
        const int64_t n_rows = min_i32(LINE_BLOCK, head->n - t);
        line_runs it = line_runs_of(head, t);
        for (int32_t begin, end; line_runs_next(&it, &begin, &end);) {
            n += n_rows * max_i32(0, min_i32(end, t) - begin);
            for (int32_t k = max_i32(begin, t); k < end; k++) n += t + n_rows - k;     /* keys among the rows */
        }
    }
    return n;
}
