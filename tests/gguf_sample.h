/* gguf_sample.h - one good file that holds everything the format has, and what tests of the reader do with it. */
#ifndef TMX_TESTS_GGUF_SAMPLE_H
#define TMX_TESTS_GGUF_SAMPLE_H

#include "gguf/blocks.h"
#include "gguf/gguf.h"
#include "gguf_writer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static inline void sample_f32s(gguf_writer *w, const char *name, int64_t n, const float *values)
{
    gw_tensor(w, name, BLOCK_F32, 1, &n, values, (size_t)n * sizeof *values);
}

/* Every value type, arrays of several, and tensors of several types and ranks. */
static inline gw_bytes sample_make(void)
{
    gguf_writer w = gguf_writer_begin();
    gw_key_string(&w, "general.architecture", "llama");
    gw_key_u8(&w, "t.u8", 200);
    gw_key_i8(&w, "t.i8", -100);
    gw_key_u16(&w, "t.u16", 60000);
    gw_key_i16(&w, "t.i16", -30000);
    gw_key_u32(&w, "t.u32", 4000000000u);
    gw_key_i32(&w, "t.i32", -2000000000);
    gw_key_i32(&w, "t.i32.positive", 7);
    gw_key_f32(&w, "t.f32", 1e-5f);
    gw_key_bool(&w, "t.bool", true);
    gw_key_u64(&w, "t.u64", UINT64_MAX);
    gw_key_u64(&w, "t.u64.small", 12);
    gw_key_i64(&w, "t.i64", INT64_MIN);
    gw_key_f64(&w, "t.f64", 10000.0);
    gw_key_f64(&w, "t.f64.big", 1e300);
    gw_key_string_n(&w, "t.text", "a\n\x1b[31m\xc3\xa9\xff\0z\\", 13);
    gw_key_strings(&w, "t.tokens", (const char *const[]){ "a", "", "\t" }, 3);
    gw_key_array(&w, "t.scores", GGUF_F32, 2, (float[]){ 0.5f, -1.0f }, 8);
    gw_key_array(&w, "t.kinds", GGUF_I32, 10, (int32_t[]){ 1, -2, 3, 4, 5, 6, 7, 8, 9, 10 }, 40);
    gw_key_array(&w, "t.flags", GGUF_BOOL, 2, (uint8_t[]){ 1, 0 }, 2);
    gw_key_array(&w, "t.bytes", GGUF_U8, 2, (uint8_t[]){ 7, 255 }, 2);
    gw_key_array(&w, "t.none", GGUF_STRING, 0, NULL, 0);
    gw_key_array(&w, "t.wide", GGUF_I64, 1, (int64_t[]){ -1 }, 8);
    float values[24];
    for (int i = 0; i < 24; i++) values[i] = (float)i;
    gw_tensor(&w, "a.weight", BLOCK_F32, 3, (int64_t[]){ 2, 3, 4 }, values, sizeof values);
    gw_tensor(&w, "b.weight", BLOCK_Q4_1, 2, (int64_t[]){ 2, 64 }, (unsigned char[80]){ 0, 0x3c, 0, 0, 0x21 }, 80);
    gw_tensor(&w, "c.weight", BLOCK_F16, 1, (int64_t[]){ 3 }, (uint16_t[]){ 0x3c00, 0, 0x8001 }, 6);
    return gw_finish(&w);
}

static inline tmx_file *sample_open(const gw_bytes *bytes)
{
    tmx_file *file = NULL;
    tmx_error err = { 0 };
    if (gguf_open_memory(&file, bytes->data, bytes->n_bytes, "m.gguf", &err) != TMX_OK) fail_msg("%s", err.text);
    return file;
}

/* Everything a reader of the file may ask. */
static inline void sample_walk(const tmx_file *file)
{
    char text[64];
    tmx_tensor_info info;
    for (int32_t i = 0; i < tmx_file_n_keys(file); i++) {
        assert_true(gguf_has(file, tmx_file_key(file, i)));
        tmx_file_value_text(file, i, text, sizeof text);
    }
    for (int32_t i = 0; i < tmx_file_n_tensors(file); i++) {
        assert_int_equal(tmx_file_tensor(file, i, &info, NULL), TMX_OK);
        assert_ptr_equal(gguf_tensor_find(file, info.name), gguf_tensor_at(file, i));
    }
    tmx_file_check_tensors(file, NULL);
}

#endif
