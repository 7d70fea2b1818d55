/* rooms: gguf; wrap: malloc calloc realloc free */
/* Models cut into several files: any part opens the whole; parts that are missing, cut short, of another model or that lie are
 * refused by a text that names the part. */
#include "alloc_watch.h"
#include "gguf_sample.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum { N_PARTS = 3 };

/* What a part says; index 0 is the first. */
typedef struct part_text {
    const char *architecture;      /* NULL = not said */
    int32_t no, count, n_tensors;  /* of its keys; n_tensors -1 = not said */
    const char *tensors[3];        /* names; each holds three numbers: 10 * part, 10 * part + 1, ... */
} part_text;

static const part_text good[N_PARTS] = {
    { "llama", 0, 3, 4, { NULL } },            /* metadata alone, as some writers want it */
    { NULL, 1, 3, 4, { "b.weight", "d.weight", "c.weight" } },
    { "llama", 2, 3, 4, { "a.weight" } },
};

static char folder[] = "/tmp/tmx-split-XXXXXX";

static const char *path_of(int32_t no)
{
    static char paths[4][80];
    char *path = paths[no & 3];
    snprintf(path, sizeof paths[0], "%s/m-%05d-of-%05d.gguf", folder, no + 1, N_PARTS);
    return path;
}

static gw_bytes make_part(const part_text *p, int32_t k)
{
    gguf_writer w = gguf_writer_begin();
    if (p->architecture != NULL) gw_key_string(&w, "general.architecture", p->architecture);
    gw_key(&w, "split.no", GGUF_U16, &(uint16_t){ (uint16_t)p->no }, 2);
    gw_key(&w, "split.count", GGUF_U16, &(uint16_t){ (uint16_t)p->count }, 2);
    if (p->n_tensors >= 0) gw_key_i32(&w, "split.tensors.count", p->n_tensors);
    for (int i = 0; i < 3 && p->tensors[i] != NULL; i++) {
        const float values[3] = { (float)(10 * k), (float)(10 * k + 1), (float)(10 * k + 2) };
        sample_f32s(&w, p->tensors[i], 3, values);
    }
    return gw_finish(&w);
}

static void write_part(const part_text *p, int32_t k)
{
    gw_bytes bytes = make_part(p, k);
    assert_true(gw_save(&bytes, path_of(k)));
    gw_free(&bytes);
}

static void write_all(const part_text parts[N_PARTS])
{
    for (int32_t k = 0; k < N_PARTS; k++) write_part(&parts[k], k);
}

static void remove_all(void)
{
    for (int32_t k = 0; k < N_PARTS; k++) {
        unlink(path_of(k));
        rmdir(path_of(k));
    }
}

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) == NULL;
}

static int remove_folder(void **state)
{
    (void)state;
    remove_all();
    return rmdir(folder);
}

static void expect_refused_path(const char *path, tmx_status code, const char *text)
{
    tmx_file *file = (tmx_file *)&watch;                  /* must stay as it is */
    tmx_error err = { 0 };
    watch_begin(0);
    const tmx_status status = tmx_file_open(&file, path, &err);
    watch_end();
    if (status != code || err.code != code || strstr(err.text, text) == NULL) {
        fail_msg("%s: got %s '%s', expected %s '%s'", path, tmx_status_name(status), err.text, tmx_status_name(code), text);
    }
    assert_ptr_equal(file, &watch);
    assert_int_equal(watch.n_live, 0);
}

static void any_part_opens_the_whole(void **state)
{
    (void)state;
    static const char *const names[] = { "b.weight", "d.weight", "c.weight", "a.weight" };
    char first_hex[65] = "";
    write_all(good);
    for (int32_t given = 0; given < N_PARTS; given++) {
        tmx_file *file;
        tmx_error err;
        tmx_part_info part;
        uint64_t n_bytes = 0;
        if (tmx_file_open(&file, path_of(given), &err) != TMX_OK) fail_msg("%s", err.text);
        assert_int_equal(tmx_file_n_parts(file), N_PARTS);
        assert_int_equal(tmx_file_n_tensors(file), 4);
        for (int32_t i = 0; i < 4; i++) {
            tmx_tensor_info info;
            assert_int_equal(tmx_file_tensor(file, i, &info, &err), TMX_OK);
            assert_string_equal(info.name, names[i]);
            assert_int_equal(info.part, i < 3 ? 1 : 2);
            const gguf_tensor *t = gguf_tensor_find(file, names[i]);
            assert_ptr_equal(t, gguf_tensor_at(file, i));
            assert_float_equal(((const float *)t->data)[1], (float)(10 * info.part + 1), 0);
        }
        assert_null(gguf_tensor_find(file, "e.weight"));
        for (int32_t k = 0; k < N_PARTS; k++) {
            struct stat st;
            assert_int_equal(tmx_file_part(file, k, &part, &err), TMX_OK);
            assert_string_equal(part.name, path_of(k));
            assert_int_equal(part.n_tensors, k == 1 ? 3 : k == 2);
            assert_int_equal(stat(path_of(k), &st), 0);
            assert_int_equal(part.n_bytes, st.st_size);
            n_bytes += part.n_bytes;
        }
        assert_int_equal(tmx_file_bytes(file), n_bytes);
        assert_int_equal(tmx_file_part(file, N_PARTS, &part, &err), TMX_E_ARG);
        assert_int_equal(tmx_file_part(file, -1, &part, &err), TMX_E_ARG);
        assert_int_equal(tmx_file_check_tensors(file, &err), TMX_OK);
        char hex[65];
        gguf_fingerprint(file, hex);
        if (given > 0) assert_string_equal(hex, first_hex);
        strcpy(first_hex, hex);
        tmx_file_close(file);
    }
    remove_all();
}

static void change_byte(const char *path, long from_end, unsigned char value)
{
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, -from_end, SEEK_END), 0);
    fputc(value, f);
    assert_int_equal(fclose(f), 0);
}

static void fingerprint_and_check_see_all_parts(void **state)
{
    (void)state;
    char hex[3][65];
    for (int i = 0; i < 3; i++) {
        tmx_file *file;
        tmx_error err;
        write_all(good);
        if (i > 0) change_byte(path_of(i), 1, 0x3f);           /* the last number is another one */
        assert_int_equal(tmx_file_open(&file, path_of(0), &err), TMX_OK);
        gguf_fingerprint(file, hex[i]);
        assert_int_equal(tmx_file_check_tensors(file, &err), TMX_OK);
        tmx_file_close(file);
    }
    assert_string_not_equal(hex[0], hex[1]);
    assert_string_not_equal(hex[0], hex[2]);
    assert_string_not_equal(hex[1], hex[2]);
    write_all(good);
    change_byte(path_of(2), 1, 0x7f);
    change_byte(path_of(2), 2, 0xc0);
    tmx_file *file;
    tmx_error err;
    assert_int_equal(tmx_file_open(&file, path_of(1), &err), TMX_OK);
    assert_int_equal(tmx_file_check_tensors(file, &err), TMX_E_NUMERIC);
    assert_non_null(strstr(err.text, "m-00003-of-00003.gguf: tensor 'a.weight' (F32): element 2"));
    tmx_file_close(file);
    remove_all();
}

static void lies_are_refused(void **state)
{
    (void)state;
    static const struct { int32_t at; part_text part; const char *text; } cases[] = {
        { 1, { NULL, 2, 3, 4, { "b.weight" } }, "m-00002-of-00003.gguf: is part 3 of 3 by its keys, expected part 2 of 3" },
        { 1, { NULL, 1, 4, 4, { "b.weight" } }, "m-00002-of-00003.gguf: is part 2 of 4 by its keys, expected part 2 of 3" },
        { 1, { NULL, 1, 1, 4, { "b.weight" } }, "m-00002-of-00003.gguf: is part 1 of 1 by its keys, expected part 2 of 3" },
        { 2, { "gemma3", 2, 3, 4, { "a.weight" } }, "m-00003-of-00003.gguf: key 'general.architecture' has another value than in part 1" },
        { 2, { NULL, 2, 3, 5, { "a.weight" } }, "m-00003-of-00003.gguf: key 'split.tensors.count' has another value than in part 1" },
        { 2, { NULL, 2, 3, -1, { "a.weight", "e.weight" } }, "split.tensors.count 4, but the 3 parts hold 5 tensors" },
        { 2, { NULL, 2, 3, 4, { "c.weight" } }, "tensor 'c.weight' is in part 2 and in part 3" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        write_all(good);
        write_part(&cases[i].part, cases[i].at);
        expect_refused_path(path_of(0), TMX_E_FORMAT, cases[i].text);
    }
    part_text none[N_PARTS];
    memcpy(none, good, sizeof none);
    for (int k = 0; k < N_PARTS; k++) none[k].n_tensors = -1;
    write_all(none);
    expect_refused_path(path_of(0), TMX_E_FORMAT, "key 'split.tensors.count' is missing");
    remove_all();
}

/* Told by the part alone. */
static void impossible_numbers_are_refused(void **state)
{
    (void)state;
    static const struct { part_text part; const char *text; } cases[] = {
        { { "llama", 3, 3, 1, { "a.weight" } }, "split.no 3, expected 0..2" },
        { { "llama", 0, 1025, 1, { "a.weight" } }, "split.count 1025, the limit is 1024" },
        { { "llama", 0, 65535, 1, { "a.weight" } }, "split.count 65535, the limit is 1024" },
        { { "llama", 1, 3, 1, { "a.weight" } }, "is part 2 of 3 by its keys, so its name must end in -00002-of-00003.gguf" },
        { { "llama", 0, 2, 1, { "a.weight" } }, "is part 1 of 2 by its keys, so its name must end in -00001-of-00002.gguf" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        write_part(&cases[i].part, 0);
        expect_refused_path(path_of(0), TMX_E_FORMAT, cases[i].text);
    }
    gguf_writer w = gguf_writer_begin();
    gw_key_string(&w, "split.count", "3");
    gw_bytes bytes = gw_finish(&w);
    assert_true(gw_save(&bytes, path_of(0)));
    gw_free(&bytes);
    expect_refused_path(path_of(0), TMX_E_FORMAT, "key 'split.count': type string, expected u32");
    for (int32_t count = 0; count < 2; count++) {              /* one file, whatever its name */
        tmx_file *file;
        write_part(&(part_text){ "llama", 9, count, 7, { "a.weight" } }, 0);
        assert_int_equal(tmx_file_open(&file, path_of(0), NULL), TMX_OK);
        assert_int_equal(tmx_file_n_parts(file), 1);
        tmx_file_close(file);
    }
    remove_all();
}

static void missing_parts_are_named(void **state)
{
    (void)state;
    for (int32_t missing = 0; missing < N_PARTS; missing++) {
        char text[400];
        write_all(good);
        unlink(path_of(missing));
        snprintf(text, sizeof text, "part %d of 3: %s: cannot open: No such file or directory", missing + 1, path_of(missing));
        expect_refused_path(path_of((missing + 1) % N_PARTS), TMX_E_IO, text);
        assert_int_equal(mkdir(path_of(missing), 0700), 0);
        expect_refused_path(path_of((missing + 2) % N_PARTS), TMX_E_IO, "is a directory");
        rmdir(path_of(missing));
    }
    remove_all();
}

static void every_truncation_of_a_part_is_refused(void **state)
{
    (void)state;
    gw_bytes bytes = make_part(&good[1], 1);
    write_all(good);
    for (size_t n = 0; n < bytes.n_bytes; n++) {
        const gw_bytes cut = { .data = bytes.data, .n_bytes = n };
        char text[64];
        assert_true(gw_save(&cut, path_of(1)));
        snprintf(text, sizeof text, "m-00002-of-00003.gguf: truncated at byte %zu", n);
        expect_refused_path(path_of(2), TMX_E_FORMAT, text);
    }
    gw_free(&bytes);
    remove_all();
}

static void every_failing_allocation_is_survived(void **state)
{
    (void)state;
    write_all(good);
    for (long fail_at = 1;; fail_at++) {
        tmx_file *file = NULL;
        tmx_error err = { 0 };
        watch_begin(fail_at);
        const tmx_status status = tmx_file_open(&file, path_of(1), &err);
        if (status == TMX_OK) tmx_file_close(file);
        watch_end();
        assert_int_equal(watch.n_live, 0);
        if (watch.n_calls < fail_at) {
            assert_int_equal(status, TMX_OK);
            assert_true(fail_at > 20);
            break;
        }
        assert_int_equal(status, TMX_E_MEMORY);
    }
    remove_all();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_part_opens_the_whole),
        cmocka_unit_test(fingerprint_and_check_see_all_parts),
        cmocka_unit_test(lies_are_refused),
        cmocka_unit_test(impossible_numbers_are_refused),
        cmocka_unit_test(missing_parts_are_named),
        cmocka_unit_test(every_truncation_of_a_part_is_refused),
        cmocka_unit_test(every_failing_allocation_is_survived),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
