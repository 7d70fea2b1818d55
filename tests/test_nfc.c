/* rooms: token gguf base; wrap: malloc calloc realloc free */
/* NFC against an independent implementation (scripts/make-nfc-goldens.py), and what must hold for any text. */
#include "alloc_watch.h"
#include "base/sha256.h"
#include "token/nfc.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

enum { END = 0x2fa20, MAX_SKIPPED = 128, ROOM = 16 << 20 };

static char *source;               /* [n_source], a text put together */
static size_t n_source;
static uint32_t skipped[MAX_SKIPPED];
static size_t n_skipped;
static uint64_t state = 1;

static uint32_t random_below(uint32_t n)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((state >> 33) % n);
}

static void put(uint32_t code)
{
    char *c = source + n_source;
    if (code < 0x80) {
        c[0] = (char)code;
        n_source++;
        return;
    }
    const int n = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (int i = n - 1; i > 0; i--, code >>= 6) c[i] = (char)(0x80 | (code & 0x3f));
    c[0] = (char)((n == 2 ? 0xc0 : n == 3 ? 0xe0 : 0xf0) | (int)code);
    n_source += (size_t)n;
}

static bool is_skipped(uint32_t code)
{
    if (code >= 0xd800 && code < 0xe000) return true;
    for (size_t i = 0; i < n_skipped; i++) {
        if (skipped[i] == code) return true;
    }
    return false;
}

static void make_each(void)
{
    for (uint32_t code = 1; code < END; code++) {
        if (is_skipped(code)) continue;
        const uint32_t lines[] = { code, '\n', 'e', 0x316, code, 0x301, '\n', code, 0x327, 0x301, '\n' };
        for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) put(lines[i]);
    }
}

static void make_mixed(void)
{
    static const struct { uint32_t first, n; } pools[] = {
        { 0x61, 26 }, { 0x300, 80 }, { 0x1100, 19 }, { 0x1161, 21 }, { 0x11a7, 28 }, { 0xac00, 11172 }, { 0xc0, 400 }, { 0x1e00, 512 },
        { 0x900, 128 }, { 0x9c7, 1 }, { 0x9be, 1 }, { 0x5b0, 20 }, { 0xf900, 512 }, { 0x20d0, 20 }, { 0x4e00, 100 },
    };
    for (int i = 0; i < 100000; i++) {
        const uint32_t pool = random_below(sizeof pools / sizeof pools[0]);
        put(pools[pool].first + random_below(pools[pool].n));
    }
}

static void make_piled(void)
{
    put('a');
    for (int i = 0; i < 20000; i++) put(0x300 + random_below(0x4f));
}

static void normalises_as_the_goldens_say(void **unused)
{
    (void)unused;
    static char line[1 << 12];
    nfc_text t = { 0 }, again = { 0 };
    int n_checked = 0;
    FILE *lines = fopen(TMX_SOURCE_DIR "/tests/vectors/nfc.txt", "r");
    assert_non_null(lines);
    while (fgets(line, sizeof line, lines) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        if (strncmp(line, "skip ", 5) == 0) {
            char *at = line + 5;
            for (char *end; n_skipped < MAX_SKIPPED; at = end) {
                const unsigned long code = strtoul(at, &end, 16);
                if (end == at) break;
                skipped[n_skipped++] = (uint32_t)code;
            }
            continue;
        }
        n_source = 0;
        if (strncmp(line, "each", 4) == 0) make_each();
        if (strncmp(line, "mixed", 5) == 0) make_mixed();
        if (strncmp(line, "piled", 5) == 0) make_piled();
        assert_true(n_source > 0 && n_source < ROOM);
        assert_int_equal(nfc_normalize(&t, source, n_source, NULL), TMX_OK);
        sha256 hash;
        char hex[65], found[128];
        sha256_init(&hash);
        sha256_add(&hash, t.bytes, t.n_bytes);
        sha256_hex(&hash, hex);
        snprintf(found, sizeof found, " %zu %s", t.n_bytes, hex);
        assert_string_equal(found, strchr(line, ' '));
        assert_int_equal(nfc_normalize(&again, t.bytes, t.n_bytes, NULL), TMX_OK);         /* once is enough */
        assert_int_equal(again.n_bytes, t.n_bytes);
        assert_memory_equal(again.bytes, t.bytes, t.n_bytes);
        n_checked++;
    }
    assert_int_equal(n_checked, 3);
    fclose(lines);
    nfc_free(&t);
    nfc_free(&again);
}

static void expect(const char *text, size_t n_bytes, const char *expected)
{
    nfc_text t = { 0 };
    assert_int_equal(nfc_normalize(&t, text, n_bytes, NULL), TMX_OK);
    assert_int_equal(t.n_bytes, strlen(expected));
    assert_memory_equal(t.bytes, expected, t.n_bytes);
    nfc_free(&t);
}

static void bytes_that_are_no_text_stay(void **unused)
{
    (void)unused;
    expect("", 0, "");
    expect("e\xcc\x81", 3, "\xc3\xa9");
    expect("e\xff\xcc\x81", 4, "e\xff\xcc\x81");                  /* a wrong byte parts the two */
    expect("\xcc\x81 e\xcc", 5, "\xcc\x81 e\xcc");
    expect("\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8", 9, "\xea\xb0\x81");
    expect("\xcc\xa3\xcc\x87", 4, "\xcc\xa3\xcc\x87");
    expect("\xcc\x87\xcc\xa3", 4, "\xcc\xa3\xcc\x87");            /* nothing to stand on, but put in order */
}

static void plain_text_is_seen(void **unused)
{
    (void)unused;
    assert_true(nfc_is_plain("", 0));
    assert_true(nfc_is_plain("plain \xc3\xa9 \xcb\xbf", 10));
    assert_false(nfc_is_plain("e\xcc\x81", 3));
    for (uint32_t code = 1; code < 0x300; code++) {            /* plain text is in NFC */
        n_source = 0;
        put(code);
        source[n_source] = '\0';
        assert_true(nfc_is_plain(source, n_source));
        expect(source, n_source, source);
    }
}

/* Ten megabytes of marks behind one letter, of every class in turn: put in order in linear time. */
static void piled_up_marks_take_linear_time(void **unused)
{
    (void)unused;
    nfc_text t = { 0 };
    struct timespec begin, end;
    n_source = 0;
    put('a');
    while (n_source < 10 << 20) put(0x300 + random_below(0x4f));
    clock_gettime(CLOCK_MONOTONIC, &begin);
    assert_int_equal(nfc_normalize(&t, source, n_source, NULL), TMX_OK);
    clock_gettime(CLOCK_MONOTONIC, &end);
    const double seconds = (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
    print_message("# 10 MB of marks: %.2f s\n", seconds);
    assert_true(seconds < 20);
    nfc_free(&t);
}

static void every_failing_allocation_is_survived(void **unused)
{
    (void)unused;
    n_source = 0;
    make_mixed();
    for (long fail_at = 1;; fail_at++) {
        nfc_text t = { 0 };
        watch_begin(fail_at);
        const tmx_status status = nfc_normalize(&t, source, n_source, NULL);
        nfc_free(&t);
        watch_end();
        assert_int_equal(watch.n_live, 0);
        if (watch.n_calls < fail_at) break;
        assert_int_equal(status, TMX_E_MEMORY);
    }
}

static int take_room(void **unused)
{
    (void)unused;
    source = malloc(ROOM);
    return source == NULL;
}

static int give_room_back(void **unused)
{
    (void)unused;
    free(source);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(normalises_as_the_goldens_say),
        cmocka_unit_test(bytes_that_are_no_text_stay),
        cmocka_unit_test(plain_text_is_seen),
        cmocka_unit_test(piled_up_marks_take_linear_time),
        cmocka_unit_test(every_failing_allocation_is_survived),
    };
    return cmocka_run_group_tests(tests, take_room, give_room_back);
}
