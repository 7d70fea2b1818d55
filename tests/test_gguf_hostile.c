/* rooms: gguf; wrap: malloc calloc realloc free */
/* Hostile files: each is refused, before memory is spent on it, by a text that says what, where, found, expected. */
#include "alloc_watch.h"
#include "gguf_sample.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* Opens, expects the refusal and its text, and that nothing was left behind or allocated beyond reason. */
static void expect_refused_bytes(const void *data, size_t n_bytes, tmx_status code, const char *text)
{
    tmx_file *file = (tmx_file *)&watch;                  /* must stay as it is */
    tmx_error err = { 0 };
    watch_begin(0);
    const tmx_status status = gguf_open_memory(&file, data, n_bytes, "m.gguf", &err);
    watch_end();
    if (status != code || strstr(err.text, text) == NULL || strncmp(err.text, "m.gguf: ", 8) != 0) {
        fail_msg("got %s '%s', expected %s '%s'", tmx_status_name(status), err.text, tmx_status_name(code), text);
    }
    assert_int_equal(err.code, code);
    assert_ptr_equal(file, &watch);
    assert_int_equal(watch.n_live, 0);
    assert_true(watch.n_bytes <= 8 * n_bytes + 8192);
}

static void expect_refused(gguf_writer *w, tmx_status code, const char *text)
{
    gw_bytes file = gw_finish(w);
    expect_refused_bytes(file.data, file.n_bytes, code, text);
    gw_free(&file);
}

/* ---------------------------------------------------------------- A1 to A3: the outside */

static void every_truncation_is_refused(void **state)
{
    (void)state;
    gw_bytes bytes = sample_make();
    for (size_t n = 0; n < bytes.n_bytes; n++) {
        unsigned char *exact = malloc(n + (n == 0));      /* ASan sees a read past the end */
        assert_non_null(exact);
        memcpy(exact, bytes.data, n);
        char text[64];
        snprintf(text, sizeof text, "truncated at byte %zu while reading the ", n);
        expect_refused_bytes(exact, n, TMX_E_FORMAT, text);
        free(exact);
    }
    expect_refused_bytes(bytes.data, 3, TMX_E_FORMAT, "the magic bytes of the header: needs 4 bytes from byte 0");
    expect_refused_bytes(bytes.data, 23, TMX_E_FORMAT, "the key count of the header: needs 8 bytes from byte 16");
    expect_refused_bytes(bytes.data, 40, TMX_E_FORMAT, "the keys and tensors of the header: needs ");
    expect_refused_bytes(bytes.data, bytes.n_bytes - 1, TMX_E_FORMAT, "the data of tensor 'c.weight': bytes ");
    gw_free(&bytes);
}

static void truncated_records_are_named(void **state)
{
    (void)state;
    gguf_writer w = gguf_writer_begin();
    gw_key_string(&w, "a", "a long enough value to leave room for a whole record behind it");
    gw_put_u64(&w.keys, 1000);
    w.n_keys = 2;
    expect_refused(&w, TMX_E_FORMAT,
                   "truncated at byte 115 while reading the name of key 2 of 2: needs 1000 bytes from byte 115");
    w = gguf_writer_begin();
    gw_key_u64(&w, "abc", 1);
    w.keys.n_bytes -= 1;
    expect_refused(&w, TMX_E_FORMAT, "while reading the value of key 'abc': needs 8 bytes from byte 39");
}

static void other_files_are_recognised(void **state)
{
    (void)state;
#define FILE_OF(bytes, text) { bytes, sizeof(bytes) - 1, text }
    static const struct { const char *bytes; size_t n_bytes; const char *text; } cases[] = {
        FILE_OF("lmgg\1\0\0\0", "not a GGUF file: begins with 6c 6d 67 67; looks like an old GGML model"),
        FILE_OF("fmgg\1\0\0\0", "old GGMF model"),
        FILE_OF("tjgg\3\0\0\0", "old GGJT model"),
        FILE_OF("FUGG\0\0\0\3", "big-endian"),
        FILE_OF("\x40\0\0\0\0\0\0\0{\"__metadata__\"", "safetensors"),
        FILE_OF("PK\3\4\0\0\0\0\0archive/data.pkl", "PyTorch"),
        FILE_OF("\x80\2\x8a\n", "pickle"),
        FILE_OF("\x7f" "ELF\2\1\1", "ELF"),
        FILE_OF("<!DOCTYPE html><html>", "HTML"),
        FILE_OF("<!doctype html>", "HTML"),
        FILE_OF("<html><body>", "HTML"),
        FILE_OF("version https://git-lfs.github.com/spec/v1\noid sha256:", "Git LFS pointer"),
        FILE_OF("\x1f\x8b\x08\0", "gzip"),
        FILE_OF("\0\0\0\0\0\0", "zeros"),
        FILE_OF("hello there", "no model format we know"),
        FILE_OF("gguf\3\0\0\0", "no model format we know"),
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        expect_refused_bytes(cases[i].bytes, cases[i].n_bytes, TMX_E_FORMAT, cases[i].text);
    }
}

static void versions_are_refused(void **state)
{
    (void)state;
    static const struct { uint32_t version; const char *text; } cases[] = {
        { 0, "at byte 4: GGUF version 0, expected 2 or 3" }, { 1, "GGUF version 1, expected 2 or 3" },
        { 4, "GGUF version 4, expected 2 or 3" }, { UINT32_MAX, "GGUF version 4294967295" },
        { 0x03000000, "version 0x03000000: a big-endian GGUF (version 3 byte-swapped); convert it to little-endian" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        gguf_writer w = gguf_writer_begin();
        gw_key_u32(&w, "a", 1);
        w.version = cases[i].version;
        expect_refused(&w, TMX_E_UNSUPPORTED, cases[i].text);
    }
}

/* ---------------------------------------------------------------- A4 to A8: counts, strings, keys, values */

static void counts_are_bounded(void **state)
{
    (void)state;
    static const struct { uint64_t n_tensors, n_keys; const char *text; } cases[] = {
        { 1ull << 63, 1, "the header at byte 8: tensor count 9223372036854775808, the limit is 262144" },
        { 1ull << 32, 1, "tensor count 4294967296" },
        { UINT64_MAX, 1, "tensor count 18446744073709551615" },
        { 262145, 1, "tensor count 262145, the limit is 262144" },
        { 262144, 1, "truncated at byte 41 while reading the keys and tensors of the header: needs 8650766 bytes" },
        { 1, 1, "truncated" },
        { 0, 1ull << 63, "the header at byte 16: key count 9223372036854775808, the limit is 65536" },
        { 0, 1ull << 32, "key count 4294967296" },
        { 0, 65537, "key count 65537, the limit is 65536" },
        { 0, 65536, "truncated" },
        { 0, 2, "truncated at byte 41 while reading the keys and tensors of the header: needs 28 bytes from byte 24" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        gguf_writer w = gguf_writer_begin();
        gw_key_u32(&w, "a", 1);
        w.n_tensors = cases[i].n_tensors;
        w.n_keys = cases[i].n_keys;
        w.alignment = 1;           /* no padding behind the key */
        expect_refused(&w, TMX_E_FORMAT, cases[i].text);
    }
}

static void string_lengths_are_bounded(void **state)
{
    (void)state;
    static const struct { uint64_t n_bytes; const char *text; } cases[] = {
        { UINT64_MAX, "key 'a' at byte 37: string of 18446744073709551615 bytes, the limit is 67108864" },
        { 1ull << 63, "string of 9223372036854775808 bytes" },
        { (64ull << 20) + 1, "string of 67108865 bytes, the limit is 67108864" },
        { 64ull << 20, "truncated at byte 50 while reading the value of key 'a': needs 67108864 bytes from byte 45" },
        { 6, "needs 6 bytes from byte 45" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (int is_array = 0; is_array < 2; is_array++) {
            gguf_writer w = gguf_writer_begin();
            if (is_array) gw_key_array(&w, "a", GGUF_STRING, 1, NULL, 0);
            else gw_key(&w, "a", GGUF_STRING, NULL, 0);
            gw_put_u64(&w.keys, cases[i].n_bytes);
            gw_put(&w.keys, "five.", 5);
            expect_refused(&w, TMX_E_FORMAT, is_array ? "key 'a'" : cases[i].text);
        }
        gguf_writer w = gguf_writer_begin();               /* as the length of a name */
        gw_put_u64(&w.keys, cases[i].n_bytes);
        gw_put(&w.keys, "five.", 5);
        gw_put_u64(&w.keys, 0);
        w.n_keys = 1;
        if (cases[i].n_bytes != 6) expect_refused(&w, TMX_E_FORMAT, "key 1 of 1");
        else gw_free(&w.keys);
    }
}

static void key_names_are_checked(void **state)
{
    (void)state;
    char *longest = malloc(65537);
    assert_non_null(longest);
    memset(longest, 'k', 65536);
    longest[65536] = '\0';
    gguf_writer w = gguf_writer_begin();
    gw_key_u32(&w, longest, 1);
    expect_refused(&w, TMX_E_FORMAT, "key 1 of 1 at byte 24: name of 65536 bytes, expected 1..65535");
    w = gguf_writer_begin();
    gw_key_u32(&w, longest + 1, 1);
    gw_bytes bytes = gw_finish(&w);
    tmx_file *file = sample_open(&bytes);
    assert_int_equal(strlen(tmx_file_key(file, 0)), 65535);
    uint32_t u;
    assert_int_equal(gguf_get_u32(file, longest + 1, &u, NULL), TMX_OK);
    assert_int_equal(gguf_get_u32(file, longest, &u, NULL), TMX_E_FORMAT);
    tmx_file_close(file);
    gw_free(&bytes);
    free(longest);

    static const struct { const char *name; size_t n_bytes; const char *text; } cases[] = {
        { "", 0, "key 2 of 2 at byte 41: name of 0 bytes, expected 1..65535" },
        { "k\xc3\xa9y", 4, "byte 1 of the name is 0xc3, expected printable ASCII" },
        { "k\0y", 3, "byte 1 of the name is 0x00" },
        { "key\n", 4, "byte 3 of the name is 0x0a" },
        { "\x7f", 1, "byte 0 of the name is 0x7f" },
        { "z", 1, "key 'z' appears twice, as numbers 1 and 2 of 2" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        w = gguf_writer_begin();
        gw_key_u32(&w, "z", 1);
        gw_put_string_n(&w.keys, cases[i].name, cases[i].n_bytes);
        gw_put_u32(&w.keys, GGUF_U64);
        gw_put_u64(&w.keys, 1);
        w.n_keys = 2;
        expect_refused(&w, TMX_E_FORMAT, cases[i].text);
    }
}

static void value_types_are_checked(void **state)
{
    (void)state;
    static const uint32_t unknown[] = { 13, 14, 255, 1u << 31, UINT32_MAX };
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++) {
        char text[64];
        snprintf(text, sizeof text, "key 'a' at byte 33: value type %u, expected 0..12", unknown[i]);
        gguf_writer w = gguf_writer_begin();
        gw_key(&w, "a", unknown[i], "12345678", 8);
        expect_refused(&w, TMX_E_FORMAT, text);
        snprintf(text, sizeof text, "key 'a' at byte 37: value type %u, expected 0..12", unknown[i]);
        w = gguf_writer_begin();
        gw_key_array(&w, "a", unknown[i], 1, "12345678", 8);
        expect_refused(&w, TMX_E_FORMAT, text);
    }
    gguf_writer w = gguf_writer_begin();
    gw_key_array(&w, "a", GGUF_ARRAY, 1, "\4\0\0\0\0\0\0\0\0\0\0\0", 12);
    expect_refused(&w, TMX_E_UNSUPPORTED, "key 'a' at byte 37: an array of arrays");
}

static void array_counts_are_bounded(void **state)
{
    (void)state;
    static const struct { uint32_t type; uint64_t n; const char *text; } cases[] = {
        { GGUF_U8, 1ull << 62, "array of 4611686018427387904 elements, the limit is 67108864" },
        { GGUF_F64, 1ull << 61, "array of 2305843009213693952 elements" },
        { GGUF_STRING, UINT64_MAX, "array of 18446744073709551615 elements" },
        { GGUF_U32, (1ull << 62) + 2, "array of 4611686018427387906 elements" },
        { GGUF_U64, 1u << 26, "needs 536870912 bytes from byte 49" },
        { GGUF_STRING, 1u << 26, "truncated at byte 57 while reading the strings of key 'a': needs 536870912 bytes" },
        { GGUF_STRING, 2, "truncated" },
        { GGUF_U8, 9, "truncated at byte 57 while reading the elements of key 'a': needs 9 bytes from byte 49" },
        { GGUF_U32, 3, "needs 12 bytes" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        gguf_writer w = gguf_writer_begin();
        gw_key_array(&w, "a", cases[i].type, cases[i].n, "\0\0\0\0\0\0\0\0", 8);
        expect_refused(&w, TMX_E_FORMAT, cases[i].text);
    }
}

static void bools_are_zero_or_one(void **state)
{
    (void)state;
    for (int value = 2; value < 256; value++) {
        char text[64];
        snprintf(text, sizeof text, "key 'a' at byte 37: bool holds %d, expected 0 or 1", value);
        gguf_writer w = gguf_writer_begin();
        gw_key(&w, "a", GGUF_BOOL, &(uint8_t){ (uint8_t)value }, 1);
        expect_refused(&w, TMX_E_FORMAT, text);
        w = gguf_writer_begin();
        gw_key_array(&w, "a", GGUF_BOOL, 3, (uint8_t[]){ 0, 1, (uint8_t)value }, 3);
        expect_refused(&w, TMX_E_FORMAT, "bool holds");
    }
}

/* Lookups and the search for duplicates must not be quadratic in the number of keys. */
static void many_keys_open_quickly(void **state)
{
    (void)state;
    gguf_writer w = gguf_writer_begin();
    for (int i = 0; i < 65536; i++) {
        char key[32];
        snprintf(key, sizeof key, "k%d", i * 7919 % 65536);
        gw_key_u8(&w, key, 1);
    }
    gw_bytes bytes = gw_finish(&w);
    const clock_t begin = clock();
    watch_begin(0);
    tmx_file *file = sample_open(&bytes);
    watch_end();
    const double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
    tmx_file_close(file);
    assert_true(seconds < 2);
    assert_true(watch.n_bytes < 2 * bytes.n_bytes + (64u << 20));
    gw_free(&bytes);
}

/* ---------------------------------------------------------------- A9 to A14: tensors */

static void alignment_is_checked(void **state)
{
    (void)state;
    static const uint32_t bad[] = { 0, 1, 3, 4, 12, 24, 33, 1u << 17, 1u << 30, 1u << 31, UINT32_MAX };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char text[96];
        snprintf(text, sizeof text, "key 'general.alignment': %u, expected a power of two in 8..65536", bad[i]);
        gguf_writer w = gguf_writer_begin();
        gw_key_u32(&w, "general.alignment", bad[i]);
        expect_refused(&w, TMX_E_FORMAT, text);
    }
    gguf_writer w = gguf_writer_begin();
    gw_key_i32(&w, "general.alignment", 32);
    expect_refused(&w, TMX_E_FORMAT, "key 'general.alignment': type i32, expected u32");
    w = gguf_writer_begin();
    gw_key_string(&w, "general.alignment", "32");
    expect_refused(&w, TMX_E_FORMAT, "type string, expected u32");

    for (uint32_t alignment = 8; alignment <= 65536; alignment *= 2) {
        w = gguf_writer_begin();
        w.alignment = alignment;
        if (alignment != 32) gw_key_u32(&w, "general.alignment", alignment);   /* 32 when missing */
        sample_f32s(&w, "a", 1, (float[]){ 1 });
        sample_f32s(&w, "b", 1, (float[]){ 2 });
        gw_bytes bytes = gw_finish(&w);
        tmx_file *file = sample_open(&bytes);
        const gguf_tensor *a = gguf_tensor_at(file, 0), *b = gguf_tensor_at(file, 1);
        assert_int_equal(a->offset_bytes % alignment, 0);
        assert_int_equal(b->offset_bytes - a->offset_bytes, alignment);
        assert_true(*(const unsigned char *)b->data == 0 && ((const unsigned char *)b->data)[3] == 0x40);
        tmx_file_close(file);
        gw_free(&bytes);
    }
}

/* One F32 tensor record with these dims and 64 bytes of data. */
static gguf_writer record(uint32_t type, uint32_t n_dims, const uint64_t *dims, uint64_t offset)
{
    gguf_writer w = gguf_writer_begin();
    gw_tensor_record(&w, "a", type, n_dims, dims, offset);
    gw_put(&w.data, (unsigned char[64]){ 0 }, 64);
    return w;
}

static void dimensions_are_checked(void **state)
{
    (void)state;
    static const uint64_t ones[5] = { 1, 1, 1, 1, 1 };
    gguf_writer w = record(BLOCK_F32, 5, ones, 0);
    expect_refused(&w, TMX_E_FORMAT, "tensor 'a' at byte 33: 5 dimensions, expected 1..4");
    w = record(BLOCK_F32, 0, ones, 0);
    expect_refused(&w, TMX_E_FORMAT, "tensor 'a' at byte 33: 0 dimensions, expected 1..4");
    w = record(BLOCK_F32, 1, ones, 0);
    memset(w.tensors.data + 9, 0xff, 4);
    expect_refused(&w, TMX_E_FORMAT, "4294967295 dimensions");

    static const struct { uint64_t dims[4]; const char *text; } cases[] = {
        { { 0, 1, 1, 1 }, "tensor 'a' at byte 37: dimension 0 is 0, expected 1..2^63-1" },
        { { 1, 1, 1, 0 }, "tensor 'a' at byte 61: dimension 3 is 0" },
        { { 1, 1ull << 63, 1, 1 }, "dimension 1 is 9223372036854775808" },
        { { UINT64_MAX, 1, 1, 1 }, "dimension 0 is 18446744073709551615" },
        { { 1ull << 32, 1ull << 32, 1, 1 }, "tensor 'a' at byte 45: the product of the dimensions is over 2^63-1" },
        { { 1ull << 32, 1, 1, 1ull << 32 }, "product" },
        { { 1ull << 16, 1ull << 16, 1ull << 16, 1ull << 16 }, "product" },
        { { 1ull << 62, 2, 1, 1 }, "product" },
        { { 3, INT64_MAX, 1, 1 }, "product" },
        { { INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX }, "product" },
        { { 1ull << 32, 1ull << 32, 0, 1 }, "product" },
        { { INT64_MAX, 1, 1, 1 }, "9223372036854775807 elements of type F32: their size in bytes is over 2^64-1" },
        { { 1ull << 61, 1, 1, 1 }, "truncated at byte 160 while reading the data of tensor 'a'" },
        { { 1ull << 60, 3, 1, 1 }, "truncated" },
        { { 17, 1, 1, 1 }, "truncated at byte 160 while reading the data of tensor 'a': bytes 96 to 164" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        w = record(BLOCK_F32, 4, cases[i].dims, 0);
        expect_refused(&w, TMX_E_FORMAT, cases[i].text);
    }
}

static void types_and_rows_are_checked(void **state)
{
    (void)state;
    static const uint32_t bad[] = { 4, 5, 9, 31, 32, 33, 36, 37, 38, 43, 999, UINT32_MAX };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char text[64];
        snprintf(text, sizeof text, "tensor 'a' at byte 45: type %u not supported", bad[i]);
        gguf_writer w = record(bad[i], 1, (uint64_t[]){ 1 }, 0);
        expect_refused(&w, TMX_E_UNSUPPORTED, text);
    }
    static const struct { uint32_t type; uint64_t n_row; const char *text; } rows[] = {
        { BLOCK_Q4_1, 31, "rows of 31 elements, expected a multiple of 32 (type Q4_1)" },
        { BLOCK_Q4_0, 33, "rows of 33 elements, expected a multiple of 32 (type Q4_0)" },
        { BLOCK_Q8_0, 16, "rows of 16 elements, expected a multiple of 32 (type Q8_0)" },
        { BLOCK_Q4_K, 128, "rows of 128 elements, expected a multiple of 256 (type Q4_K)" },
        { BLOCK_Q6_K, 255, "rows of 255 elements, expected a multiple of 256 (type Q6_K)" },
        { BLOCK_Q8_K, 32, "rows of 32 elements, expected a multiple of 256 (type Q8_K)" },
        { BLOCK_Q5_0, 48, "rows of 48 elements, expected a multiple of 32 (type Q5_0)" },
        { BLOCK_IQ4_XS, 288, "rows of 288 elements, expected a multiple of 256 (type IQ4_XS)" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        gguf_writer w = record(rows[i].type, 2, (uint64_t[]){ rows[i].n_row, 32 }, 0);
        expect_refused(&w, TMX_E_FORMAT, rows[i].text);
    }
    gguf_writer w = gguf_writer_begin();                  /* known, but not one we expand: opens and says so */
    gw_tensor(&w, "a", 16, 1, (int64_t[]){ 256 }, (unsigned char[66]){ 0 }, 66);
    gw_bytes bytes = gw_finish(&w);
    tmx_file *file = sample_open(&bytes);
    tmx_tensor_info info;
    assert_int_equal(tmx_file_tensor(file, 0, &info, NULL), TMX_OK);
    assert_string_equal(info.type_name, "IQ2_XXS");
    assert_false(info.is_supported);
    tmx_file_close(file);
    gw_free(&bytes);
}

static void offsets_are_checked(void **state)
{
    (void)state;
    static const struct { uint64_t offset, n; const char *text; } cases[] = {
        { 1, 1, "tensor 'a' at byte 49: offset 1, expected a multiple of the alignment 32" },
        { 16, 1, "offset 16, expected" },
        { 96, 1, "truncated at byte 128 while reading the data of tensor 'a': bytes 160 to 164" },
        { 64, 1, "bytes 128 to 132" },
        { 32, 9, "bytes 96 to 132" },
        { 1ull << 63, 1, "truncated" },
        { UINT64_MAX - 31, 1, "tensor 'a': offset + size is over 2^64-1" },
        { UINT64_MAX - 63, 1, "tensor 'a': offset + size is over 2^64-1" },
        { UINT64_MAX - 95, 16, "tensor 'a': offset + size is over 2^64-1" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        gguf_writer w = record(BLOCK_F32, 1, &cases[i].n, cases[i].offset);
        expect_refused(&w, TMX_E_FORMAT, cases[i].text);
    }
    gguf_writer w = record(BLOCK_F32, 1, (uint64_t[]){ 8 }, 32);               /* the last byte that fits */
    gw_bytes bytes = gw_finish(&w);
    tmx_file_close(sample_open(&bytes));
    expect_refused_bytes(bytes.data, bytes.n_bytes - 1, TMX_E_FORMAT, "truncated at byte 127");
    gw_free(&bytes);
}

/* Three tensors of 10 floats, their second one moved: in file order or not, only overlaps are refused. */
static void overlaps_are_refused(void **state)
{
    (void)state;
    static const struct { uint64_t offsets[3]; const char *text; } cases[] = {
        { { 0, 64, 128 }, NULL },
        { { 128, 0, 64 }, NULL },
        { { 0, 32, 128 }, "tensor 'b' at byte 160 overlaps 'a', which ends at byte 168" },
        { { 0, 128, 96 }, "tensor 'b' at byte 256 overlaps 'c'" },
        { { 64, 64, 128 }, "overlaps" },
        { { 0, 128, 128 }, "overlaps" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        gguf_writer w = gguf_writer_begin();
        for (int t = 0; t < 3; t++) {
            gw_tensor_record(&w, (char[2]){ (char)('a' + t) }, BLOCK_F32, 1, (uint64_t[]){ 10 }, cases[i].offsets[t]);
        }
        gw_put(&w.data, (unsigned char[256]){ 0 }, 256);
        if (cases[i].text != NULL) {
            expect_refused(&w, TMX_E_FORMAT, cases[i].text);
            continue;
        }
        gw_bytes bytes = gw_finish(&w);
        tmx_file_close(sample_open(&bytes));
        gw_free(&bytes);
    }
}

static void tensor_names_are_checked(void **state)
{
    (void)state;
    char name[65];
    memset(name, 'n', 64);
    name[64] = '\0';
    gguf_writer w = gguf_writer_begin();
    sample_f32s(&w, name, 1, (float[]){ 1 });
    expect_refused(&w, TMX_E_FORMAT, "tensor 1 of 1 at byte 24: name of 64 bytes, expected 1..63");
    w = gguf_writer_begin();
    sample_f32s(&w, name + 1, 1, (float[]){ 1 });
    gw_bytes bytes = gw_finish(&w);
    tmx_file *file = sample_open(&bytes);
    assert_non_null(gguf_tensor_find(file, name + 1));
    tmx_file_close(file);
    gw_free(&bytes);
    w = gguf_writer_begin();
    sample_f32s(&w, "", 1, (float[]){ 1 });
    expect_refused(&w, TMX_E_FORMAT, "name of 0 bytes, expected 1..63");
    w = gguf_writer_begin();
    sample_f32s(&w, "a\x1b[0m", 1, (float[]){ 1 });
    expect_refused(&w, TMX_E_FORMAT, "byte 1 of the name is 0x1b, expected printable ASCII");
    w = gguf_writer_begin();
    sample_f32s(&w, "a", 1, (float[]){ 1 });
    sample_f32s(&w, "b", 1, (float[]){ 1 });
    sample_f32s(&w, "a", 1, (float[]){ 1 });
    expect_refused(&w, TMX_E_FORMAT, "tensor 'a' appears twice, as numbers 1 and 3 of 3");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(truncated_records_are_named),
        cmocka_unit_test(other_files_are_recognised),
        cmocka_unit_test(versions_are_refused),
        cmocka_unit_test(counts_are_bounded),
        cmocka_unit_test(string_lengths_are_bounded),
        cmocka_unit_test(key_names_are_checked),
        cmocka_unit_test(value_types_are_checked),
        cmocka_unit_test(array_counts_are_bounded),
        cmocka_unit_test(bools_are_zero_or_one),
        cmocka_unit_test(many_keys_open_quickly),
        cmocka_unit_test(alignment_is_checked),
        cmocka_unit_test(dimensions_are_checked),
        cmocka_unit_test(types_and_rows_are_checked),
        cmocka_unit_test(offsets_are_checked),
        cmocka_unit_test(overlaps_are_refused),
        cmocka_unit_test(tensor_names_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
