/* rooms: gguf; wrap: malloc calloc realloc free */
/* Good files: what they give.  Then what a path may name instead of a file, and memory that runs out. */
#include "alloc_watch.h"
#include "base/sha256.h"
#include "gguf_sample.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static int32_t key_index(const tmx_file *file, const char *key)
{
    for (int32_t i = 0; i < tmx_file_n_keys(file); i++) {
        if (strcmp(tmx_file_key(file, i), key) == 0) return i;
    }
    fail_msg("no key %s", key);
    return -1;
}

static const char *text_of(const tmx_file *file, const char *key)
{
    static char text[160];
    return tmx_file_value_text(file, key_index(file, key), text, sizeof text);
}

/* ---------------------------------------------------------------- what a good file gives */

static void sample_opens(void **state)
{
    (void)state;
    gw_bytes bytes = sample_make();
    tmx_file *file = sample_open(&bytes);
    assert_int_equal(tmx_file_version(file), 3);
    assert_int_equal(tmx_file_bytes(file), bytes.n_bytes);
    assert_int_equal(tmx_file_n_keys(file), 23);
    assert_string_equal(tmx_file_key(file, 0), "general.architecture");
    assert_null(tmx_file_key(file, -1));
    assert_null(tmx_file_key(file, 23));
    assert_string_equal(gguf_label(file), "m.gguf");

    assert_int_equal(tmx_file_n_tensors(file), 3);
    tmx_tensor_info info;
    tmx_error err;
    assert_int_equal(tmx_file_tensor(file, 0, &info, &err), TMX_OK);
    assert_string_equal(info.name, "a.weight");
    assert_string_equal(info.type_name, "F32");
    assert_int_equal(info.n_dims, 3);
    const int64_t shape[4] = { 2, 3, 4, 1 };
    assert_memory_equal(info.shape, shape, sizeof shape);
    assert_int_equal(info.n_bytes, 96);
    assert_int_equal(info.offset_bytes % 32, 0);
    assert_true(info.is_supported);
    const gguf_tensor *t = gguf_tensor_find(file, "b.weight");
    assert_ptr_equal(t, gguf_tensor_at(file, 1));
    assert_int_equal(t->n_bytes, 80);
    assert_int_equal(t->shape[0], 2);
    assert_int_equal(t->shape[1], 64);
    assert_ptr_equal(t->data, bytes.data + t->offset_bytes);
    assert_int_equal(((const unsigned char *)t->data)[4], 0x21);
    assert_int_equal(t->offset_bytes, info.offset_bytes + 96);
    assert_null(gguf_tensor_find(file, "b.weigh"));
    assert_null(gguf_tensor_at(file, 3));
    assert_null(gguf_tensor_at(file, -1));
    assert_int_equal(tmx_file_tensor(file, 3, &info, &err), TMX_E_ARG);
    assert_string_equal(err.text, "m.gguf: tensor 3 is out of range 0..2");
    assert_int_equal(tmx_file_check_tensors(file, &err), TMX_OK);
    tmx_file_close(file);

    bytes.data[4] = 2;
    file = sample_open(&bytes);
    assert_int_equal(tmx_file_version(file), 2);
    tmx_file_close(file);
    gw_free(&bytes);
}

static void value_text_shows_every_type(void **state)
{
    (void)state;
    gw_bytes bytes = sample_make();
    tmx_file *file = sample_open(&bytes);
    assert_string_equal(text_of(file, "general.architecture"), "llama");
    assert_string_equal(text_of(file, "t.u8"), "200");
    assert_string_equal(text_of(file, "t.i8"), "-100");
    assert_string_equal(text_of(file, "t.u16"), "60000");
    assert_string_equal(text_of(file, "t.i16"), "-30000");
    assert_string_equal(text_of(file, "t.u32"), "4000000000");
    assert_string_equal(text_of(file, "t.i32"), "-2000000000");
    assert_string_equal(text_of(file, "t.f32"), "1e-05");
    assert_string_equal(text_of(file, "t.bool"), "true");
    assert_string_equal(text_of(file, "t.u64"), "18446744073709551615");
    assert_string_equal(text_of(file, "t.i64"), "-9223372036854775808");
    assert_string_equal(text_of(file, "t.f64"), "10000");
    assert_string_equal(text_of(file, "t.text"), "a\\n\\x1b[31m\xc3\xa9\\xff\\x00z\\\\");
    assert_string_equal(text_of(file, "t.tokens"), "[3 strings: \"a\", \"\", \"\\t\"]");
    assert_string_equal(text_of(file, "t.scores"), "[2 f32: 0.5, -1]");
    assert_string_equal(text_of(file, "t.kinds"), "[10 i32: 1, -2, 3, 4, 5, 6, 7, 8, ...]");
    assert_string_equal(text_of(file, "t.flags"), "[2 bool: true, false]");
    assert_string_equal(text_of(file, "t.bytes"), "[2 u8: 7, 255]");
    assert_string_equal(text_of(file, "t.none"), "[0 strings]");
    assert_string_equal(text_of(file, "t.wide"), "[1 i64: -1]");

    /* Any size: terminated, inside the buffer, and a cut is marked without halving a character or an escape. */
    for (int32_t i = -1; i <= tmx_file_n_keys(file); i++) {
        char whole[200];
        tmx_file_value_text(file, i, whole, sizeof whole);
        for (size_t size = 0; size < 64; size++) {
            char text[65];
            memset(text, '#', sizeof text);
            assert_ptr_equal(tmx_file_value_text(file, i, text, size), text);
            assert_int_equal(text[size], '#');
            if (size == 0) continue;
            assert_true(strlen(text) < size);
            const size_t n_dots = strlen(text) >= 3 && strcmp(text, whole) != 0 ? 3 : 0;
            if (size >= 4) assert_int_equal(strncmp(text, whole, strlen(text) - n_dots), 0);
            if (n_dots == 3) assert_string_equal(text + strlen(text) - 3, "...");
            assert_false(n_dots == 3 && (text[strlen(text) - 4 + (strlen(text) == 3)] & 0xc0) == 0xc0);
        }
    }
    tmx_file_close(file);
    gw_free(&bytes);
}

static void broken_utf8_is_escaped(void **state)
{
    (void)state;
    static const struct { const char *bytes, *text; } cases[] = {
        { "\xc0\x80", "\\xc0\\x80" }, { "\xe0\x80\x80", "\\xe0\\x80\\x80" }, { "\xed\xa0\x80", "\\xed\\xa0\\x80" },
        { "\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80" }, { "\xc2\x9b", "\\xc2\\x9b" }, { "\xe2\x82", "\\xe2\\x82" },
        { "\xe2\x82\xac", "\xe2\x82\xac" }, { "\xf0\x9f\x98\x80", "\xf0\x9f\x98\x80" }, { "\x7f", "\\x7f" },
        { "\xc2\xa0", "\xc2\xa0" }, { "\xf5\x80\x80\x80", "\\xf5\\x80\\x80\\x80" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        gguf_writer w = gguf_writer_begin();
        gw_key_string(&w, "s", cases[i].bytes);
        gw_bytes bytes = gw_finish(&w);
        tmx_file *file = sample_open(&bytes);
        assert_string_equal(text_of(file, "s"), cases[i].text);
        tmx_file_close(file);
        gw_free(&bytes);
    }
}

static void getters_are_typed(void **state)
{
    (void)state;
    gw_bytes bytes = sample_make();
    tmx_file *file = sample_open(&bytes);
    enum kind { NOTHING, U32, F32, BOOL, STRING };         /* which getter takes it */
    static const struct { const char *key; enum kind kind; } cases[] = {
        { "t.u8", U32 }, { "t.i8", NOTHING }, { "t.u16", U32 }, { "t.i16", NOTHING }, { "t.u32", U32 },
        { "t.i32", NOTHING }, { "t.i32.positive", U32 }, { "t.f32", F32 }, { "t.bool", BOOL }, { "t.u64", NOTHING },
        { "t.u64.small", U32 }, { "t.i64", NOTHING }, { "t.f64", F32 }, { "t.f64.big", NOTHING }, { "t.text", STRING },
        { "t.tokens", NOTHING }, { "t.scores", NOTHING }, { "t.kinds", NOTHING }, { "t.none", NOTHING },
        { "absent", NOTHING },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *key = cases[i].key;
        const bool is_there = strcmp(key, "absent") != 0, is_u32 = cases[i].kind == U32, is_f32 = cases[i].kind == F32;
        tmx_error err = { 0 };
        uint32_t u = 99;
        float f = 99;
        gguf_string s = { 0 };
        assert_int_equal(gguf_has(file, key), is_there);
        assert_int_equal(gguf_get_u32(file, key, &u, &err), is_u32 ? TMX_OK : TMX_E_FORMAT);
        if (!is_u32) {
            assert_int_equal(u, 99);
            assert_non_null(strstr(err.text, key));
        }
        assert_int_equal(gguf_get_f32(file, key, &f, &err), is_f32 ? TMX_OK : TMX_E_FORMAT);
        if (!is_f32) assert_true(f == 99);
        assert_int_equal(gguf_get_string(file, key, &s, &err), cases[i].kind == STRING ? TMX_OK : TMX_E_FORMAT);
        bool b = false;
        assert_int_equal(gguf_get_u32_or(file, key, 5, &u, &err), is_u32 || !is_there ? TMX_OK : TMX_E_FORMAT);
        assert_int_equal(gguf_get_f32_or(file, key, 5, &f, &err), is_f32 || !is_there ? TMX_OK : TMX_E_FORMAT);
        assert_int_equal(gguf_get_bool_or(file, key, true, &b, &err),
                         cases[i].kind == BOOL || !is_there ? TMX_OK : TMX_E_FORMAT);
        if (!is_there) assert_true(u == 5 && f == 5 && b);
    }
    uint32_t u;
    float f;
    bool b;
    tmx_error err;
    assert_int_equal(gguf_get_u32(file, "t.u8", &u, NULL), TMX_OK);
    assert_int_equal(u, 200);
    assert_int_equal(gguf_get_u32(file, "t.u32", &u, NULL), TMX_OK);
    assert_int_equal(u, 4000000000u);
    assert_int_equal(gguf_get_u32(file, "t.u64.small", &u, NULL), TMX_OK);
    assert_int_equal(u, 12);
    assert_int_equal(gguf_get_f32(file, "t.f32", &f, NULL), TMX_OK);
    assert_true(f == 1e-5f);
    assert_int_equal(gguf_get_f32(file, "t.f64", &f, NULL), TMX_OK);
    assert_true(f == 10000.0f);
    assert_int_equal(gguf_get_bool_or(file, "t.bool", false, &b, NULL), TMX_OK);
    assert_true(b);
    gguf_get_u32(file, "absent", &u, &err);
    assert_string_equal(err.text, "m.gguf: key 'absent' is missing");
    gguf_get_u32(file, "t.i32", &u, &err);
    assert_string_equal(err.text, "m.gguf: key 't.i32': -2000000000, expected 0..4294967295");
    gguf_get_u32(file, "t.u64", &u, &err);
    assert_string_equal(err.text, "m.gguf: key 't.u64': 18446744073709551615, expected 0..4294967295");
    gguf_get_f32(file, "t.f64.big", &f, &err);
    assert_string_equal(err.text, "m.gguf: key 't.f64.big': 1e+300 does not fit f32");
    gguf_get_f32(file, "t.u32", &f, &err);
    assert_string_equal(err.text, "m.gguf: key 't.u32': type u32, expected f32");
    tmx_file_close(file);
    gw_free(&bytes);
}

/* A7: an array of another element type is refused, never read as the one asked for. */
static void arrays_are_typed(void **state)
{
    (void)state;
    gw_bytes bytes = sample_make();
    tmx_file *file = sample_open(&bytes);
    static const struct { const char *key; int type; } keys[] = {
        { "t.tokens", GGUF_STRING }, { "t.scores", GGUF_F32 }, { "t.kinds", GGUF_I32 }, { "t.flags", GGUF_BOOL },
        { "t.bytes", GGUF_U8 }, { "t.none", GGUF_STRING }, { "t.wide", GGUF_I64 }, { "t.u32", -1 }, { "absent", -1 },
    };
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        for (int type = 0; type <= GGUF_F64; type++) {
            if (type == GGUF_ARRAY) continue;
            gguf_array array = { .n = 77 };
            const tmx_status status = gguf_get_array(file, keys[i].key, (gguf_value_type)type, &array, NULL);
            assert_int_equal(status, type == keys[i].type ? TMX_OK : TMX_E_FORMAT);
            if (status != TMX_OK) assert_int_equal(array.n, 77);
        }
        assert_int_equal(gguf_is_array(file, keys[i].key), keys[i].type >= 0);
    }
    gguf_array array;
    tmx_error err;
    gguf_get_array(file, "t.bytes", GGUF_F32, &array, &err);
    assert_string_equal(err.text, "m.gguf: key 't.bytes': type array of u8, expected array of f32");
    assert_int_equal(gguf_get_array(file, "t.scores", GGUF_F32, &array, &err), TMX_OK);
    assert_int_equal(array.n, 2);
    assert_true(gguf_array_f32(&array, 0) == 0.5f && gguf_array_f32(&array, 1) == -1.0f);
    assert_int_equal(gguf_get_array(file, "t.kinds", GGUF_I32, &array, &err), TMX_OK);
    assert_int_equal(gguf_array_i32(&array, 1), -2);
    assert_int_equal(gguf_get_array(file, "t.tokens", GGUF_STRING, &array, &err), TMX_OK);
    assert_int_equal(array.strings[2].n_bytes, 1);
    assert_int_equal(array.strings[2].data[0], '\t');
    tmx_file_close(file);
    gw_free(&bytes);
}

static void fingerprint_covers_metadata_and_samples(void **state)
{
    (void)state;
    float values[3000] = { 1 };
    gguf_writer w = gguf_writer_begin();
    gw_key_string(&w, "general.name", "x");
    sample_f32s(&w, "big", 3000, values);
    sample_f32s(&w, "small", 3, values);
    gw_bytes bytes = gw_finish(&w);
    tmx_file *file = sample_open(&bytes);
    const size_t big = gguf_tensor_at(file, 0)->offset_bytes, small = gguf_tensor_at(file, 1)->offset_bytes;
    tmx_file_close(file);
    sha256 s;
    char expected[65];
    sha256_init(&s);
    sha256_add(&s, bytes.data, big);
    sha256_add(&s, bytes.data + big, 4096);
    sha256_add(&s, bytes.data + small, 12);
    sha256_hex(&s, expected);
    const struct { size_t at; bool is_covered; } cases[] = {
        { 40, true }, { big, true }, { big + 4095, true }, { big + 4096, false }, { small + 11, true },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char hex[65];
        for (int is_changed = 0; is_changed < 2; is_changed++) {
            if (is_changed) bytes.data[cases[i].at] ^= 1;
            file = sample_open(&bytes);
            gguf_fingerprint(file, hex);
            tmx_file_close(file);
            if (is_changed) bytes.data[cases[i].at] ^= 1;
            assert_int_equal(strcmp(hex, expected) != 0, is_changed && cases[i].is_covered);
        }
    }
    gw_free(&bytes);
}

/* ---------------------------------------------------------------- A17: NaN and infinity */

static void expect_scan(gguf_writer *w, tmx_status code, const char *text)
{
    gw_bytes bytes = gw_finish(w);
    tmx_file *file = sample_open(&bytes);                  /* loads all the same */
    tmx_error err = { 0 };
    const tmx_status status = tmx_file_check_tensors(file, &err);
    if (status != code || strstr(err.text, text) == NULL) {
        fail_msg("got %s '%s', expected %s '%s'", tmx_status_name(status), err.text, tmx_status_name(code), text);
    }
    tmx_file_close(file);
    gw_free(&bytes);
}

static void tensors_are_checked_for_nan(void **state)
{
    (void)state;
    enum { N = 3 * 4096 + 5 };
    static const int64_t at[] = { 0, 1, 4095, 4096, 8191, N - 1 };
    for (size_t i = 0; i < sizeof at / sizeof at[0]; i++) {
        static float values[N];
        memset(values, 0, sizeof values);
        values[at[i]] = i % 2 ? NAN : -INFINITY;
        gguf_writer w = gguf_writer_begin();
        sample_f32s(&w, "good", 2, (float[]){ 1, 2 });
        sample_f32s(&w, "bad", N, values);
        char text[128];
        snprintf(text, sizeof text, "m.gguf: tensor 'bad' (F32): element %d, block at byte %d: %s", (int)at[i],
                 128 + 4 * (int)at[i], i % 2 ? "NaN" : "infinity");
        expect_scan(&w, TMX_E_NUMERIC, text);
    }
    static const struct { uint32_t type; size_t n_bytes, at; uint16_t bits; const char *text; } blocks[] = {
        { BLOCK_F16, 128, 126, 0x7c00, "element 63, block at byte 190: infinity" },
        { BLOCK_BF16, 128, 2, 0x7fc0, "element 1, block at byte 66: NaN" },
        { BLOCK_Q8_0, 68, 34, 0x7c00, "element 32, block at byte 98: NaN" },        /* infinity * 0 */
        { BLOCK_Q4_0, 36, 18, 0xfe00, "element 32, block at byte 82: NaN" },
        { BLOCK_Q4_0, 36, 0, 0xfc00, "element 0, block at byte 64: infinity" },
        { BLOCK_Q4_1, 40, 20, 0x7e00, "element 32, block at byte 84: NaN" },
        { BLOCK_Q4_1, 40, 22, 0x7c00, "element 32, block at byte 84: infinity" },
        { BLOCK_Q5_0, 44, 22, 0x7c00, "element 32, block at byte 86: infinity" },
        { BLOCK_Q5_1, 48, 24, 0xfe00, "element 32, block at byte 88: NaN" },
        { BLOCK_Q5_1, 48, 26, 0x7c00, "element 32, block at byte 88: infinity" },
        { BLOCK_IQ4_NL, 36, 18, 0x7c00, "element 32, block at byte 82: infinity" },
        { BLOCK_Q2_K, 84, 80, 0x7c00, "element 0, block at byte 64: NaN" },
        { BLOCK_Q2_K, 84, 82, 0x7c00, "element 0, block at byte 64: NaN" },
        { BLOCK_Q3_K, 110, 108, 0x7c00, "element 0, block at byte 64: infinity" },
        { BLOCK_Q4_K, 144, 0, 0xfc00, "element 0, block at byte 64: NaN" },
        { BLOCK_Q4_K, 144, 2, 0x7c01, "element 0, block at byte 64: NaN" },
        { BLOCK_Q5_K, 352, 176, 0x7c00, "element 256, block at byte 240: NaN" },
        { BLOCK_Q5_K, 352, 178, 0x7c00, "element 256, block at byte 240: NaN" },
        { BLOCK_Q6_K, 210, 208, 0x7c00, "element 0, block at byte 64: NaN" },
        { BLOCK_Q8_K, 292, 2, 0x7f80, "element 0, block at byte 64: NaN" },
        { BLOCK_IQ4_XS, 136, 0, 0x7c00, "element 0, block at byte 64: infinity" },
        { BLOCK_MXFP4, 34, 17, 0x7fff, "element 32, block at byte 81: infinity" },     /* 12 * 2^127 */
    };
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) {
        unsigned char data[352] = { 0 };
        const block_format *f = block_format_find(blocks[i].type);
        const int64_t n = (int64_t)blocks[i].n_bytes / f->n_bytes * f->n_elements;
        memcpy(data + blocks[i].at, &blocks[i].bits, 2);
        gguf_writer w = gguf_writer_begin();
        gw_tensor(&w, "bad", blocks[i].type, 1, &n, data, blocks[i].n_bytes);
        expect_scan(&w, TMX_E_NUMERIC, blocks[i].text);
    }
    gguf_writer w = gguf_writer_begin();                  /* 0x7bff is the largest half: 15 times it is a number */
    gw_tensor(&w, "good", BLOCK_Q4_1, 1, (int64_t[]){ 32 }, (unsigned char[20]){ 0xff, 0x7b, 0xff, 0x7b, 0xff }, 20);
    gw_tensor(&w, "whole", BLOCK_I8, 1, (int64_t[]){ 2 }, (unsigned char[2]){ 0xff, 0xff }, 2);
    expect_scan(&w, TMX_OK, "");
    w = gguf_writer_begin();
    gw_tensor(&w, "unknown", 16, 1, (int64_t[]){ 256 }, (unsigned char[66]){ 0 }, 66);
    sample_f32s(&w, "good", 1, (float[]){ 1 });
    expect_scan(&w, TMX_E_UNSUPPORTED, "m.gguf: tensor 'unknown': cannot look into type IQ2_XXS");
    w = gguf_writer_begin();
    gw_tensor(&w, "unknown", 16, 1, (int64_t[]){ 256 }, (unsigned char[66]){ 0 }, 66);
    sample_f32s(&w, "bad", 1, (float[]){ NAN });
    expect_scan(&w, TMX_E_NUMERIC, "tensor 'bad'");
}

/* ---------------------------------------------------------------- A21: what the path names */

static char folder[] = "/tmp/test_gguf_XXXXXX";

static const char *in_folder(const char *name)
{
    static char path[sizeof folder + 64];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void expect_path_refused(const char *path, tmx_status code, const char *text)
{
    tmx_file *file = NULL;
    tmx_error err = { 0 };
    alarm(10);                     /* waiting for a pipe would be the failure */
    const tmx_status status = tmx_file_open(&file, path, &err);
    alarm(0);
    if (status != code || strstr(err.text, text) == NULL) {
        fail_msg("%s: got %s '%s', expected %s '%s'", path, tmx_status_name(status), err.text, tmx_status_name(code),
                 text);
    }
    assert_null(file);
}

static void paths_that_are_no_files_are_refused(void **state)
{
    (void)state;
    expect_path_refused(folder, TMX_E_IO, ": is a directory, expected a regular file");
    expect_path_refused("/dev/null", TMX_E_IO, "/dev/null: is a device, expected a regular file");
    expect_path_refused("/dev/zero", TMX_E_IO, "/dev/zero: is a device, expected a regular file");
    expect_path_refused(in_folder("absent"), TMX_E_IO, "absent: cannot open: No such file or directory");
    expect_path_refused("", TMX_E_IO, "cannot open");

    assert_int_equal(mkfifo(in_folder("pipe"), 0600), 0);
    expect_path_refused(in_folder("pipe"), TMX_E_IO, "pipe: is a pipe, expected a regular file");
    unlink(in_folder("pipe"));

    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    snprintf(address.sun_path, sizeof address.sun_path, "%s", in_folder("socket"));
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    expect_path_refused(in_folder("socket"), TMX_E_IO, "cannot open");
    close(fd);
    unlink(in_folder("socket"));

    assert_int_equal(symlink("loop", in_folder("loop")), 0);
    expect_path_refused(in_folder("loop"), TMX_E_IO, "cannot open: Too many levels of symbolic links");
    unlink(in_folder("loop"));

    gw_bytes bytes = sample_make();
    assert_true(gw_save(&bytes, in_folder("locked")));
    gw_free(&bytes);
    assert_int_equal(chmod(in_folder("locked"), 0), 0);
    const bool is_root = geteuid() == 0;                  /* root may read everything: try as somebody else */
    if (is_root) assert_int_equal(seteuid(65534), 0);
    expect_path_refused(in_folder("locked"), TMX_E_IO, "locked: cannot open: Permission denied");
    if (is_root) assert_int_equal(seteuid(0), 0);
    unlink(in_folder("locked"));

    bytes = (gw_bytes){ 0 };
    assert_true(gw_save(&bytes, in_folder("empty")));
    expect_path_refused(in_folder("empty"), TMX_E_FORMAT,
                        "empty: truncated at byte 0 while reading the magic bytes: the file is empty");
    unlink(in_folder("empty"));

    tmx_file *file = NULL;
    tmx_error err;
    assert_int_equal(tmx_file_open(NULL, "x", &err), TMX_E_ARG);
    assert_int_equal(tmx_file_open(&file, NULL, &err), TMX_E_ARG);
    assert_int_equal(tmx_file_open(&file, "/", NULL), TMX_E_IO);
}

static void files_open_from_disk(void **state)
{
    (void)state;
    gw_bytes bytes = sample_make();
    const char *path = in_folder("sample.gguf");
    assert_true(gw_save(&bytes, path));
    tmx_file *file = NULL;
    tmx_error err;
    assert_int_equal(tmx_file_open(&file, path, &err), TMX_OK);
    const char *shown = gguf_label(file);          /* the path may be too long for it */
    if (strncmp(shown, "...", 3) == 0) shown += 3;
    assert_string_equal(shown, path + strlen(path) - strlen(shown));
    assert_int_equal(tmx_file_bytes(file), bytes.n_bytes);
    char from_disk[65], from_memory[65];
    gguf_fingerprint(file, from_disk);
    tmx_file_close(file);
    file = sample_open(&bytes);
    gguf_fingerprint(file, from_memory);
    tmx_file_close(file);
    assert_string_equal(from_disk, from_memory);

    assert_int_equal(truncate(path, (off_t)bytes.n_bytes - 1), 0);
    expect_path_refused(path, TMX_E_FORMAT, "truncated at byte ");
    /* A sparse terabyte behind a good beginning: only what the tables name is read. */
    bytes.data[8] = 0;
    assert_true(gw_save(&bytes, path));
    if (truncate(path, (off_t)1 << 40) == 0) {
        assert_int_equal(tmx_file_open(&file, path, &err), TMX_OK);
        assert_int_equal(tmx_file_bytes(file), (uint64_t)1 << 40);
        tmx_file_close(file);
    } else {
        print_message("a sparse file of 1 TiB: not tried, the file system has none\n");
    }
    unlink(path);
    gw_free(&bytes);
}

static void long_paths_keep_the_message_whole(void **state)
{
    (void)state;
    char path[1000];
    memset(path, 'p', sizeof path);
    strcpy(path + sizeof path - 12, "/model.gguf");
    tmx_file *file = NULL;
    tmx_error err;
    assert_int_equal(tmx_file_open(&file, path, &err), TMX_E_IO);
    assert_int_equal(strncmp(err.text, "...ppp", 6), 0);
    assert_non_null(strstr(err.text, "ppp/model.gguf: cannot open: "));
    assert_int_equal(gguf_open_memory(&file, "GGUF\3", 5, path, &err), TMX_E_FORMAT);
    assert_non_null(strstr(err.text, "ppp/model.gguf: truncated at byte 5 while reading the version of the header: "
                                     "needs 4 bytes from byte 4"));
}

static void null_arguments_are_refused(void **state)
{
    (void)state;
    tmx_file *file = NULL;
    tmx_error err;
    tmx_tensor_info info;
    char text[8] = "text";
    assert_int_equal(gguf_open_memory(NULL, "GGUF", 4, "x", &err), TMX_E_ARG);
    assert_int_equal(gguf_open_memory(&file, NULL, 4, "x", &err), TMX_E_ARG);
    assert_int_equal(gguf_open_memory(&file, "GGUF", 4, NULL, &err), TMX_E_ARG);
    assert_int_equal(tmx_file_tensor(NULL, 0, &info, &err), TMX_E_ARG);
    assert_int_equal(tmx_file_check_tensors(NULL, &err), TMX_E_ARG);
    assert_int_equal(tmx_file_n_keys(NULL), 0);
    assert_int_equal(tmx_file_n_tensors(NULL), 0);
    assert_int_equal(tmx_file_version(NULL), 0);
    assert_int_equal(tmx_file_bytes(NULL), 0);
    assert_null(tmx_file_key(NULL, 0));
    assert_string_equal(tmx_file_value_text(NULL, 0, text, sizeof text), "");
    assert_null(tmx_file_value_text(NULL, 0, NULL, 0));
    tmx_file_close(NULL);
}

/* ---------------------------------------------------------------- every allocation fails once; every byte lies */

static void each_allocation_may_fail(void **state)
{
    (void)state;
    gw_bytes bytes = sample_make();
    long n_failed = 0;
    for (bool is_open = false; !is_open; n_failed += !is_open) {
        tmx_file *file = NULL;
        tmx_error err = { 0 };
        watch_begin(n_failed + 1);
        const tmx_status status = gguf_open_memory(&file, bytes.data, bytes.n_bytes, "m.gguf", &err);
        is_open = status == TMX_OK;
        tmx_file_close(file);
        watch_end();
        assert_int_equal(watch.n_live, 0);
        if (is_open) break;
        assert_int_equal(status, TMX_E_MEMORY);
        assert_int_equal(err.code, TMX_E_MEMORY);
        assert_non_null(strstr(err.text, "no memory"));
        assert_null(file);
    }
    assert_true(n_failed >= 10);   /* the file, its path, 2 tables, 2 name lists, 2 name arenas, strings, offsets */
    gw_free(&bytes);
}

static void changed_bytes_never_crash(void **state)
{
    (void)state;
    gw_bytes bytes = sample_make();
    unsigned char *copy = malloc(bytes.n_bytes);
    assert_non_null(copy);
    uint64_t random = 1;
    int n_open = 0, n_refused = 0;
    for (int round = 0; round < 20000; round++) {
        memcpy(copy, bytes.data, bytes.n_bytes);
        for (int change = 0; change <= round % 3; change++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            const size_t at = (size_t)(random >> 33) % bytes.n_bytes;
            copy[at] = (unsigned char)(round % 2 ? random >> 24 : copy[at] ^ 1u << (random >> 20 & 7));
        }
        tmx_file *file = NULL;
        tmx_error err = { 0 };
        if (gguf_open_memory(&file, copy, bytes.n_bytes, "m.gguf", &err) == TMX_OK) {
            sample_walk(file);
            n_open++;
        } else {
            assert_true(err.text[0] != '\0');
            n_refused++;
        }
        tmx_file_close(file);
    }
    assert_true(n_open > 1000 && n_refused > 1000);
    free(copy);
    gw_free(&bytes);
}

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) == NULL;
}

static int remove_folder(void **state)
{
    (void)state;
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sample_opens),
        cmocka_unit_test(value_text_shows_every_type),
        cmocka_unit_test(broken_utf8_is_escaped),
        cmocka_unit_test(getters_are_typed),
        cmocka_unit_test(arrays_are_typed),
        cmocka_unit_test(fingerprint_covers_metadata_and_samples),
        cmocka_unit_test(tensors_are_checked_for_nan),
        cmocka_unit_test(paths_that_are_no_files_are_refused),
        cmocka_unit_test(files_open_from_disk),
        cmocka_unit_test(long_paths_keep_the_message_whole),
        cmocka_unit_test(null_arguments_are_refused),
        cmocka_unit_test(each_allocation_may_fail),
        cmocka_unit_test(changed_bytes_never_crash),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
