/* conversation.c - tmx run -i: the user's turns from standard input, answers to standard output.  The history is text; for every
 * turn the whole of it is written in the model's format again, and of the tokens that come out those are prefilled that the
 * session does not hold as a cold run would (tmx_session_n_reusable).  So an answer never depends on how the conversation
 * got there. */
#include "command_run.h"

#include "report.h"
#include "signals.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_LINE_BYTES ((size_t)1 << 30)

typedef struct conversation {
    runner *r;
    tmx_turn *turns;               /* [n_turns], both texts ours */
    int32_t n_turns, cap;
    int32_t *held;                 /* [n_held] the last prompt prefilled */
    size_t n_held;
    float *logits;                 /* [n_vocab] */
    bool is_terminal;              /* somebody types */
    bool is_over;
} conversation;

static int out_of_memory(void) { return complain(EXIT_RESOURCES, "out of memory for the conversation"); }

/* ---------------------------------------------------------------- turns */

static void forget(conversation *c)
{
    for (int32_t i = 0; i < c->n_turns; i++) {
        free((void *)(uintptr_t)c->turns[i].user);
        free((void *)(uintptr_t)c->turns[i].assistant);
    }
    c->n_turns = 0;
}

/* Takes user over; the answer's NUL bytes, which a text of the history cannot hold, become spaces. */
static int remember(conversation *c, char *user, const answer *a)
{
    char *assistant = malloc(a->n_bytes + 1);
    if (c->n_turns == c->cap && assistant != NULL) {
        const int32_t cap = 2 * c->cap + 16;
        tmx_turn *turns = realloc(c->turns, (size_t)cap * sizeof *turns);
        if (turns != NULL) {
            c->turns = turns;
            c->cap = cap;
        }
    }
    if (assistant == NULL || c->n_turns == c->cap) {
        free(assistant);
        free(user);
        return out_of_memory();
    }
    for (size_t i = 0; i < a->n_bytes; i++) assistant[i] = a->text[i] != '\0' ? a->text[i] : ' ';
    assistant[a->n_bytes] = '\0';
    c->turns[c->n_turns++] = (tmx_turn){ .user = user, .assistant = assistant };
    return 0;
}

/* ---------------------------------------------------------------- one turn */

/* NULL after a complaint, whose exit code is *code. */
static int32_t *tokenize(const conversation *c, const char *user, size_t *n_ids, int *code)
{
    const tmx_chat chat = { .system = c->r->options->system, .user = user, .turns = c->turns, .n_turns = c->n_turns };
    tmx_error err;
    int32_t *ids = NULL;
    tmx_status status = tmx_chat_tokenize(c->r->model, &chat, NULL, 0, n_ids, &err);
    if (status == TMX_OK) {
        ids = malloc((*n_ids + 1) * sizeof *ids);
        if (ids == NULL) *code = out_of_memory();
        else status = tmx_chat_tokenize(c->r->model, &chat, ids, *n_ids, n_ids, &err);
    }
    if (status == TMX_OK) return ids;
    *code = complain_error(&err);
    free(ids);
    return NULL;
}

/* At least one token is left to prefill. */
static int32_t count_kept(const conversation *c, const int32_t *ids, size_t n_ids)
{
    const int32_t n_reusable = tmx_session_n_reusable(c->r->session, 0, (int32_t)n_ids);
    int32_t n = 0;
    while (n < n_reusable && (size_t)n + 1 < n_ids && (size_t)n < c->n_held && c->held[n] == ids[n]) n++;
    return n;
}

static tmx_status prefill(conversation *c, const int32_t *ids, size_t n_ids, int32_t n_kept, tmx_error *err)
{
    runner *r = c->r;
    const tmx_prompt rest = { .tokens = ids + n_kept, .n_tokens = (int32_t)n_ids - n_kept, .logits = c->logits };
    tmx_status status = tmx_session_rewind(r->session, 0, n_kept, err);
    if (status != TMX_OK) return status;
    progress_begin(&r->progress, "prefill");
    status = tmx_prefill(r->session, &rest, 1, err);
    progress_end(&r->progress);
    return status;
}

static void print_turn(const conversation *c, const answer *a, size_t n_ids, int32_t n_kept, double prefill_ms, double decode_ms)
{
    char first[32], rest[32];
    if (!c->r->options->is_verbose) return;
    fprintf(stderr, "turn %d        %zu tokens, %d of them kept, TTFT %s; answer %d tokens in %s\n", c->n_turns + 1, n_ids, n_kept,
            text_of_ms(prefill_ms + a->first_sample_ms, first), a->n_ids, text_of_ms(decode_ms, rest));
}

static void say_full(const conversation *c)
{
    complain(0, "the context of %d tokens is full; /clear begins anew, and -c gives more room", tmx_session_n_ctx(c->r->session));
}

/* Of an answer that Ctrl-C stopped, what was shown is kept; of a prefill nothing.  Takes user over. */
static int answer_turn(conversation *c, char *user, const int32_t *ids, size_t n_ids)
{
    runner *r = c->r;
    const answer_params params = {
        .options = r->options, .model = r->model, .session = r->session, .seed = r->seed + (uint64_t)c->n_turns,
        .end_ids = r->end_ids, .n_end_ids = r->n_end_ids, .is_shown = true,
    };
    answer a = { 0 };
    tmx_error err;
    const int32_t n_kept = count_kept(c, ids, n_ids);
    const double start_ms = clock_ms();
    tmx_status status = prefill(c, ids, n_ids, n_kept, &err);
    const double prefilled_ms = clock_ms();
    c->n_held = (size_t)n_kept;
    if (status == TMX_E_CANCELLED) {
        free(user);
        complain(0, "interrupted before the answer; this turn is forgotten");
        return 0;
    }
    if (status == TMX_OK) {
        memcpy(c->held, ids, n_ids * sizeof *ids);
        c->n_held = n_ids;
        status = answer_generate(&params, 0, ids, n_ids, c->logits, &a, &err);
    }
    if (status != TMX_OK) {
        answer_free(&a);
        free(user);
        return complain_error(&err);
    }
    if (a.n_bytes == 0 || a.text[a.n_bytes - 1] != '\n') putchar('\n');
    c->is_over = !flush_output() || strcmp(a.stop, "output") == 0;
    print_turn(c, &a, n_ids, n_kept, prefilled_ms - start_ms, clock_ms() - prefilled_ms);
    if (strcmp(a.stop, "context") == 0) say_full(c);
    const int code = remember(c, user, &a);
    answer_free(&a);
    return code;
}

/* Takes user over.  Input from a file or a pipe that does not fit ends the conversation: what follows would be answered
 * without it. */
static int take_turn(conversation *c, char *user)
{
    const size_t n_ctx = (size_t)tmx_session_n_ctx(c->r->session);
    size_t n_ids;
    int code = 0;
    int32_t *ids = tokenize(c, user, &n_ids, &code);
    if (ids == NULL) {
        free(user);
    } else if (n_ids > n_ctx) {
        code = complain(EXIT_INPUT, "with this turn the conversation has %zu tokens, the context holds %zu; /clear begins anew, "
                        "and -c gives more room", n_ids, n_ctx);
        if (c->is_terminal) code = 0;
        free(user);
    } else {
        signals_begin_polite();
        code = answer_turn(c, user, ids, n_ids);
        signals_end_polite();
        signals_forget();
    }
    free(ids);
    return code;
}

/* ---------------------------------------------------------------- reading */

/* Appends a line without its end.  *text stays NULL at the end of the input; it is ours also after a failure. */
static int read_line(char **text, size_t *n_bytes, size_t *cap)
{
    for (int c; (c = getchar()) != EOF;) {
        if (*n_bytes + 1 >= *cap) {
            char *more = *cap < MAX_LINE_BYTES ? realloc(*text, 2 * *cap + 256) : NULL;
            if (more == NULL) return complain(EXIT_RESOURCES, "standard input: a turn of more than %zu bytes", *n_bytes);
            *text = more;
            *cap = 2 * *cap + 256;
        }
        (*text)[*n_bytes] = '\0';
        if (c == '\n') return 0;
        (*text)[(*n_bytes)++] = (char)c;
    }
    if (ferror(stdin)) return complain(EXIT_INPUT, "standard input: cannot be read: %s", strerror(errno));
    if (*text != NULL) (*text)[*n_bytes] = '\0';
    return 0;
}

/* A turn: a line, and the next one for every backslash at an end.  NULL at the end of the input. */
static int read_turn(const conversation *c, char **turn)
{
    size_t n_bytes = 0, cap = 0, begin;
    *turn = NULL;
    for (bool is_more = true; is_more;) {
        if (c->is_terminal) fputs(n_bytes == 0 ? "> " : ". ", stderr);
        begin = n_bytes;
        const int code = read_line(turn, &n_bytes, &cap);
        if (code != 0) return code;
        is_more = n_bytes > begin && (*turn)[n_bytes - 1] == '\\' && !feof(stdin);
        if (is_more) (*turn)[n_bytes - 1] = '\n';
    }
    if (*turn == NULL || strlen(*turn) == n_bytes) return 0;
    complain(0, "standard input: a turn with a NUL byte, which a conversation cannot carry; it is left out");
    (*turn)[0] = '\0';
    return 0;
}

static int hold(conversation *c)
{
    prompt *first = &c->r->prompts.items[0];
    if (first->text != NULL) {
        if (strlen(first->text) != first->n_bytes) return complain(EXIT_INPUT, "%s: holds a NUL byte, which -i cannot carry", first->source);
        char *text = first->text;
        first->text = NULL;
        const int code = take_turn(c, text);
        if (code != 0) return code;
    }
    while (!c->is_over) {
        char *turn;
        int code = read_turn(c, &turn);
        if (code != 0 || turn == NULL || strcmp(turn, "/exit") == 0) {
            if (turn == NULL && c->is_terminal && code == 0) fputc('\n', stderr);
            free(turn);
            return code;
        }
        if (strcmp(turn, "/clear") == 0) forget(c);
        if (turn[0] == '\0' || strcmp(turn, "/clear") == 0) free(turn);
        else code = take_turn(c, turn);
        if (code != 0) return code;
    }
    return 0;
}

int conversation_hold(runner *r)
{
    conversation c = { .r = r, .is_terminal = isatty(STDIN_FILENO) && isatty(STDERR_FILENO) };
    c.logits = malloc((size_t)tmx_model_info_get(r->model)->n_vocab * sizeof *c.logits);
    c.held = malloc((size_t)tmx_session_n_ctx(r->session) * sizeof *c.held);
    const int code = c.logits != NULL && c.held != NULL ? hold(&c) : out_of_memory();
    forget(&c);
    free(c.turns);
    free(c.held);
    free(c.logits);
    return code;
}
