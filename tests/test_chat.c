/* rooms: token gguf base */
/* Chat formats: for each, the strings that its published template renders, written by hand.  {X} is a control token. */
#include "token/token.h"
#include "tiny_vocab.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define COUNT(array) (sizeof (array) / sizeof (array)[0])
enum { CAP = 4096 };

typedef struct chat_case {
    const char *format, *chat_template;        /* what of the published template tells the formats apart */
    const char *user_only, *with_system, *turns, *begun, *spaces;
} chat_case;

/* user_only     user U
 * with_system   system S, user U
 * turns         system S, user U1, assistant A1, user U2
 * begun         user U, assistant begun with B
 * spaces        system " S ", user " U1\n", assistant " A1 ", user "\tU2 ", assistant begun with " B " */
static const chat_case cases[] = {
    { "chatml", "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}",
      "{<|im_start|>}user\nU{<|im_end|>}\n{<|im_start|>}assistant\n",
      "{<|im_start|>}system\nS{<|im_end|>}\n{<|im_start|>}user\nU{<|im_end|>}\n{<|im_start|>}assistant\n",
      "{<|im_start|>}system\nS{<|im_end|>}\n{<|im_start|>}user\nU1{<|im_end|>}\n{<|im_start|>}assistant\nA1{<|im_end|>}\n"
      "{<|im_start|>}user\nU2{<|im_end|>}\n{<|im_start|>}assistant\n",
      "{<|im_start|>}user\nU{<|im_end|>}\n{<|im_start|>}assistant\nB",
      "{<|im_start|>}system\n S {<|im_end|>}\n{<|im_start|>}user\n U1\n{<|im_end|>}\n{<|im_start|>}assistant\n A1 {<|im_end|>}\n"
      "{<|im_start|>}user\n\tU2 {<|im_end|>}\n{<|im_start|>}assistant\n B " },
    { "llama3", "{{ bos_token }}{{ '<|start_header_id|>' + role + '<|end_header_id|>\n\n'+ content | trim + '<|eot_id|>' }}",
      "{<s>}{<|start_header_id|>}user{<|end_header_id|>}\n\nU{<|eot_id|>}{<|start_header_id|>}assistant{<|end_header_id|>}\n\n",
      "{<s>}{<|start_header_id|>}system{<|end_header_id|>}\n\nS{<|eot_id|>}{<|start_header_id|>}user{<|end_header_id|>}\n\nU{<|eot_id|>}"
      "{<|start_header_id|>}assistant{<|end_header_id|>}\n\n",
      "{<s>}{<|start_header_id|>}system{<|end_header_id|>}\n\nS{<|eot_id|>}{<|start_header_id|>}user{<|end_header_id|>}\n\nU1{<|eot_id|>}"
      "{<|start_header_id|>}assistant{<|end_header_id|>}\n\nA1{<|eot_id|>}{<|start_header_id|>}user{<|end_header_id|>}\n\nU2{<|eot_id|>}"
      "{<|start_header_id|>}assistant{<|end_header_id|>}\n\n",
      "{<s>}{<|start_header_id|>}user{<|end_header_id|>}\n\nU{<|eot_id|>}{<|start_header_id|>}assistant{<|end_header_id|>}\n\nB",
      "{<s>}{<|start_header_id|>}system{<|end_header_id|>}\n\nS{<|eot_id|>}{<|start_header_id|>}user{<|end_header_id|>}\n\nU1{<|eot_id|>}"
      "{<|start_header_id|>}assistant{<|end_header_id|>}\n\nA1{<|eot_id|>}{<|start_header_id|>}user{<|end_header_id|>}\n\nU2{<|eot_id|>}"
      "{<|start_header_id|>}assistant{<|end_header_id|>}\n\n B " },
    { "gemma", "{{ bos_token }}{{ '<start_of_turn>' + role + '\n' + first_user_prefix }}{{ content | trim }}{{ '<end_of_turn>\n' }}",
      "{<s>}{<start_of_turn>}user\nU{<end_of_turn>}\n{<start_of_turn>}model\n",
      "{<s>}{<start_of_turn>}user\nS\n\nU{<end_of_turn>}\n{<start_of_turn>}model\n",
      "{<s>}{<start_of_turn>}user\nS\n\nU1{<end_of_turn>}\n{<start_of_turn>}model\nA1{<end_of_turn>}\n"
      "{<start_of_turn>}user\nU2{<end_of_turn>}\n{<start_of_turn>}model\n",
      "{<s>}{<start_of_turn>}user\nU{<end_of_turn>}\n{<start_of_turn>}model\nB",
      "{<s>}{<start_of_turn>}user\n S \n\nU1{<end_of_turn>}\n{<start_of_turn>}model\nA1{<end_of_turn>}\n"
      "{<start_of_turn>}user\nU2{<end_of_turn>}\n{<start_of_turn>}model\n B " },
    /* the line ends behind the marks are in the template, but not in what its tokenizer makes of it */
    { "phi3", "{{'<|user|>\n' + m['content'] + '<|end|>\n'}}{{ '<|assistant|>\n' }}",
      "{<|user|>}U{<|end|>}{<|assistant|>}",
      "{<|system|>}S{<|end|>}{<|user|>}U{<|end|>}{<|assistant|>}",
      "{<|system|>}S{<|end|>}{<|user|>}U1{<|end|>}{<|assistant|>}A1{<|end|>}{<|user|>}U2{<|end|>}{<|assistant|>}",
      "{<|user|>}U{<|end|>}{<|assistant|>}B",
      "{<|system|>}S {<|end|>}{<|user|>}U1\n{<|end|>}{<|assistant|>}A1 {<|end|>}{<|user|>}U2 {<|end|>}{<|assistant|>}B " },
    { "phi4", "{{'<|im_start|>user<|im_sep|>' + m['content'] + '<|im_end|>'}}",
      "{<|im_start|>}user{<|im_sep|>}U{<|im_end|>}{<|im_start|>}assistant{<|im_sep|>}",
      "{<|im_start|>}system{<|im_sep|>}S{<|im_end|>}{<|im_start|>}user{<|im_sep|>}U{<|im_end|>}{<|im_start|>}assistant{<|im_sep|>}",
      "{<|im_start|>}system{<|im_sep|>}S{<|im_end|>}{<|im_start|>}user{<|im_sep|>}U1{<|im_end|>}"
      "{<|im_start|>}assistant{<|im_sep|>}A1{<|im_end|>}"
      "{<|im_start|>}user{<|im_sep|>}U2{<|im_end|>}{<|im_start|>}assistant{<|im_sep|>}",
      "{<|im_start|>}user{<|im_sep|>}U{<|im_end|>}{<|im_start|>}assistant{<|im_sep|>}B",
      "{<|im_start|>}system{<|im_sep|>} S {<|im_end|>}{<|im_start|>}user{<|im_sep|>} U1\n{<|im_end|>}"
      "{<|im_start|>}assistant{<|im_sep|>} A1 {<|im_end|>}"
      "{<|im_start|>}user{<|im_sep|>}\tU2 {<|im_end|>}{<|im_start|>}assistant{<|im_sep|>} B " },
    { "mistral-v1", "{{- bos_token }}{{- ' [INST] ' + system_message + '\n\n' + m['content'] + ' [/INST]' }}"
                    "{{- ' ' + m['content'] + eos_token}}",
      "{<s>} [INST] U [/INST]",
      "{<s>} [INST] S\n\nU [/INST]",
      "{<s>} [INST] S\n\nU1 [/INST] A1{</s>} [INST] U2 [/INST]",
      "{<s>} [INST] U [/INST] B",
      "{<s>} [INST]  S \n\n U1\n [/INST]  A1 {</s>} [INST] \tU2  [/INST]  B " },
    { "mistral-v3", "{{- bos_token }}{{- \"[AVAILABLE_TOOLS] [\" }}{{- \"[INST] \" + m[\"content\"] + \"[/INST]\" }}"
                    "{{- \" \" + m[\"content\"]|trim + eos_token}}",
      "{<s>}{[INST]} U{[/INST]}",
      "{<s>}{[INST]} S\n\nU{[/INST]}",
      "{<s>}{[INST]} U1{[/INST]} A1{</s>}{[INST]} S\n\nU2{[/INST]}",
      "{<s>}{[INST]} U{[/INST]} B",
      "{<s>}{[INST]}  U1\n{[/INST]} A1{</s>}{[INST]}  S \n\n\tU2 {[/INST]}  B " },
    { "mistral-tekken", "{{- bos_token }}{{- \"[AVAILABLE_TOOLS][\" }}{{- \"[INST]\" + m[\"content\"] + \"[/INST]\" }}"
                        "{{- m[\"content\"] + eos_token}}",
      "{<s>}{[INST]}U{[/INST]}",
      "{<s>}{[INST]}S\n\nU{[/INST]}",
      "{<s>}{[INST]}U1{[/INST]}A1{</s>}{[INST]}S\n\nU2{[/INST]}",
      "{<s>}{[INST]}U{[/INST]}B",
      "{<s>}{[INST]} U1\n{[/INST]} A1 {</s>}{[INST]} S \n\n\tU2 {[/INST]} B " },
};

static const char *const marks[] = {
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "[INST]", "[/INST]",
};

typedef struct opened {
    gw_bytes bytes;
    tmx_file *file;
    vocab *v;
} opened;

static void open_bytes(opened *o, gw_bytes bytes)
{
    tmx_error err;
    *o = (opened){ .bytes = bytes };
    if (gguf_open_memory(&o->file, bytes.data, bytes.n_bytes, "m.gguf", &err) != TMX_OK) fail_msg("%s", err.text);
    if (vocab_create(&o->v, o->file, &err) != TMX_OK) fail_msg("%s", err.text);
}

static void close_vocab(opened *o)
{
    vocab_free(o->v);
    tmx_file_close(o->file);
    gw_free(&o->bytes);
}

/* Byte-level BPE without merges; the marks are tokens 256, 257, ... of this type. */
static opened open_bpe(const char *chat_template, int32_t type, const char *architecture)
{
    tiny_vocab t = tv_begin("gpt-2");
    t.chat_template = chat_template;
    for (size_t i = 0; i < COUNT(marks); i++) tv_token(&t, marks[i], i < 2 ? 3 : type);
    gw_key_u32(&t.writer, "tokenizer.ggml.bos_token_id", 256);
    gw_key_u32(&t.writer, "tokenizer.ggml.eos_token_id", 257);
    if (architecture != NULL) gw_key_string(&t.writer, "general.architecture", architecture);
    opened o;
    open_bytes(&o, tv_finish(&t));
    return o;
}

/* SentencePiece: bytes, a space, and the marks. */
static opened open_spm(const char *chat_template, bool adds_space)
{
    gguf_writer w = gguf_writer_begin();
    gw_bytes tokens = { 0 }, types = { 0 }, scores = { 0 };
    uint32_t n = 0;
    char name[8];
    for (unsigned byte = 0; byte < 256; byte++, n++) {
        snprintf(name, sizeof name, "<0x%02X>", byte);
        gw_put_string(&tokens, name);
        gw_put_u32(&types, 6);
    }
    gw_put_string(&tokens, "\xe2\x96\x81");
    gw_put_u32(&types, 1);
    n++;
    for (size_t i = 0; i < COUNT(marks); i++, n++) {
        gw_put_string(&tokens, marks[i]);
        gw_put_u32(&types, 3);
    }
    gw_put_zeros_to(&scores, 4);
    for (uint32_t i = 0; i < n; i++) gw_put_u32(&scores, 0);
    gw_key_string(&w, "tokenizer.ggml.model", "llama");
    gw_key_string(&w, "tokenizer.chat_template", chat_template);
    gw_key_array(&w, "tokenizer.ggml.tokens", 8, n, tokens.data, tokens.n_bytes);
    gw_key_array(&w, "tokenizer.ggml.token_type", 5, n, types.data, types.n_bytes);
    gw_key_array(&w, "tokenizer.ggml.scores", 6, n, scores.data, scores.n_bytes);
    gw_key_u32(&w, "tokenizer.ggml.bos_token_id", 257);
    gw_key_u32(&w, "tokenizer.ggml.eos_token_id", 258);
    gw_key_bool(&w, "tokenizer.ggml.add_space_prefix", adds_space);
    gw_free(&tokens);
    gw_free(&types);
    gw_free(&scores);
    opened o;
    open_bytes(&o, gw_finish(&w));
    return o;
}

static void expect(const vocab *v, const tmx_chat *chat, const char *expected)
{
    int32_t ids[CAP];
    char found[2 * CAP] = "";
    size_t n = 0;
    tmx_error err;
    if (vocab_chat_tokenize(v, chat, ids, CAP, &n, &err) != TMX_OK) fail_msg("%s", err.text);
    for (size_t i = 0; i < n; i++) {
        size_t n_bytes;
        const char *bytes = vocab_token_bytes(v, ids[i], &n_bytes);
        if (n_bytes > 0) strncat(found, bytes, n_bytes);
        else sprintf(found + strlen(found), "{%s}", vocab_token_name(v, ids[i]));
    }
    assert_string_equal(found, expected);
}

static void expect_case(const vocab *v, const chat_case *c)
{
    const tmx_turn turn = { "U1", "A1" }, spaced = { " U1\n", " A1 " };
    assert_string_equal(vocab_chat_format(v), c->format);
    expect(v, &(tmx_chat){ .user = "U" }, c->user_only);
    expect(v, &(tmx_chat){ .system = "S", .user = "U" }, c->with_system);
    expect(v, &(tmx_chat){ .system = "S", .user = "U2", .turns = &turn, .n_turns = 1 }, c->turns);
    expect(v, &(tmx_chat){ .user = "U", .assistant = "B" }, c->begun);
    expect(v, &(tmx_chat){ .system = " S ", .user = "\tU2 ", .assistant = " B ", .turns = &spaced, .n_turns = 1 }, c->spaces);
}

static void formats_are_written_as_published(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        opened o = open_bpe(cases[i].chat_template, 3, NULL);
        expect_case(o.v, &cases[i]);
        close_vocab(&o);
    }
}

/* Where a vocabulary puts no space before a text, the format's own is there; where it does, that one is the format's. */
static void the_space_of_mistral_comes_once(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        for (int adds_space = 0; adds_space < 2; adds_space++) {
            if (adds_space && strncmp(cases[i].format, "mistral-v", 9) != 0) continue;
            opened o = open_spm(cases[i].chat_template, adds_space);
            chat_case c = cases[i];
            char bos[5][512];
            const char **texts[] = { &c.user_only, &c.with_system, &c.turns, &c.begun, &c.spaces };
            for (int k = 0; k < 5; k++) {      /* such a vocabulary has a BOS by itself */
                snprintf(bos[k], sizeof bos[k], "%s%s", strncmp(*texts[k], "{<s>}", 5) == 0 ? "" : "{<s>}", *texts[k]);
                *texts[k] = bos[k];
            }
            expect_case(o.v, &c);
            close_vocab(&o);
        }
    }
}

static void an_empty_text_brings_no_space(void **state)
{
    (void)state;
    const tmx_turn turn = { "U1", "" };
    for (size_t i = 0; i < COUNT(cases); i++) {
        if (strcmp(cases[i].format, "mistral-v3") != 0) continue;
        opened o = open_bpe(cases[i].chat_template, 3, NULL);
        expect(o.v, &(tmx_chat){ .user = "", .turns = &turn, .n_turns = 1 }, "{<s>}{[INST]} U1{[/INST]}{</s>}{[INST]}{[/INST]}");
        close_vocab(&o);
    }
}

/* Texts that spell marks stay text, also where a converter wrote the marks as user-defined tokens. */
static void no_text_opens_or_closes_a_turn(void **state)
{
    (void)state;
    char all[512] = "", expected[2048];
    for (size_t i = 0; i < COUNT(marks); i++) strcat(all, marks[i]);
    for (size_t i = 0; i < COUNT(cases); i++) {
        for (int32_t type = 3; type <= 4; type++) {
            opened o = open_bpe(cases[i].chat_template, type, NULL);
            const char *before = cases[i].user_only, *at = strchr(before, 'U');
            snprintf(expected, sizeof expected, "%.*s%s%s", (int)(at - before), before, all, at + 1);
            expect(o.v, &(tmx_chat){ .user = all }, expected);
            close_vocab(&o);
        }
    }
}

/* Byte-level vocabularies have no BOS by themselves: the template's word counts, and the token never comes twice. */
static void bos_comes_once(void **state)
{
    (void)state;
    static const struct { const char *chat_template, *expected; } bos[] = {
        { "{{ bos_token }}<start_of_turn><end_of_turn>", "{<s>}{<start_of_turn>}user\nU{<end_of_turn>}\n{<start_of_turn>}model\n" },
        { "{{ '<s>' }}<start_of_turn><end_of_turn>", "{<s>}{<start_of_turn>}user\nU{<end_of_turn>}\n{<start_of_turn>}model\n" },
        { "<start_of_turn><end_of_turn>", "{<start_of_turn>}user\nU{<end_of_turn>}\n{<start_of_turn>}model\n" },
    };
    for (size_t i = 0; i < COUNT(bos); i++) {
        opened o = open_bpe(bos[i].chat_template, 3, NULL);
        expect(o.v, &(tmx_chat){ .user = "U" }, bos[i].expected);
        close_vocab(&o);
    }
}

static void the_closing_mark_ends_an_answer(void **state)
{
    (void)state;
    static const char *const ends[][2] = {
        { "chatml", "<|im_end|>" }, { "llama3", "<|eot_id|>" }, { "gemma", "<end_of_turn>" }, { "phi3", "<|end|>" }, { "phi4", "<|im_end|>" },
        { "mistral-v1", "</s>" }, { "mistral-v3", "</s>" }, { "mistral-tekken", "</s>" },
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        opened o = open_bpe(cases[i].chat_template, 3, NULL);
        for (size_t k = 0; k < COUNT(ends); k++) {
            for (int32_t m = 0; strcmp(ends[k][0], cases[i].format) == 0 && m < (int32_t)COUNT(marks); m++) {
                if (strcmp(marks[m], ends[k][1]) == 0) assert_true(vocab_is_end(o.v, 256 + m));
            }
        }
        assert_false(vocab_is_end(o.v, 256));
        assert_false(vocab_is_end(o.v, 258));
        close_vocab(&o);
    }
}

static void gemma_3_needs_no_template(void **state)
{
    (void)state;
    opened o = open_bpe(NULL, 3, "gemma3");
    assert_string_equal(vocab_chat_format(o.v), "gemma");
    expect(o.v, &(tmx_chat){ .user = "U" }, "{<start_of_turn>}user\nU{<end_of_turn>}\n{<start_of_turn>}model\n");
    close_vocab(&o);
    o = open_bpe(NULL, 3, "llama");
    assert_null(vocab_chat_format(o.v));
    close_vocab(&o);
}

static void other_templates_are_unknown(void **state)
{
    (void)state;
    static const char *const others[] = {
        "", "{{ messages }}", "[INST] <<SYS>>{{ system }}<</SYS>> {{ user }} [/INST]",
        "[SYSTEM_PROMPT]{{ system }}[/SYSTEM_PROMPT][INST]{{ user }}[/INST]", "<|user|>\n{{ user }}<|endoftext|>\n<|assistant|>\n",
        "<|start|>user<|message|>{{ user }}<|end|><|start|><|assistant|><|channel|>final", "<|im_start|>user<|im_sep|>",
    };
    for (size_t i = 0; i < COUNT(others); i++) {
        opened o = open_bpe(others[i], 3, "gemma3");
        size_t n = 3;
        tmx_error err;
        assert_null(vocab_chat_format(o.v));
        assert_int_equal(vocab_chat_tokenize(o.v, &(tmx_chat){ .user = "x" }, NULL, 0, &n, &err), TMX_E_UNSUPPORTED);
        assert_non_null(strstr(err.text, "is not a chat format we know (phi4, chatml, llama3, gemma, phi3, mistral-v1, "
                                         "mistral-v3, mistral-tekken)"));
        assert_int_equal(vocab_tokenize(o.v, "x", 1, TMX_TOKEN_PLAIN, NULL, 0, &n, &err), TMX_OK);
        assert_int_equal(n, 1);
        close_vocab(&o);
    }
}

static void unicode_white_space_is_trimmed(void **state)
{
    (void)state;
    opened o = open_bpe("<start_of_turn><end_of_turn>", 3, NULL);
    expect(o.v, &(tmx_chat){ .user = "\xc2\xa0\xe2\x80\x83\xe3\x80\x80 U\xc2\xa0x\xe2\x80\x8b\xe2\x81\x9f\r\n\xc2\x85" },
           "{<start_of_turn>}user\nU\xc2\xa0x\xe2\x80\x8b{<end_of_turn>}\n{<start_of_turn>}model\n");
    expect(o.v, &(tmx_chat){ .user = " \xe3\x80\x80\t" }, "{<start_of_turn>}user\n{<end_of_turn>}\n{<start_of_turn>}model\n");
    expect(o.v, &(tmx_chat){ .user = "\x80\xa0" }, "{<start_of_turn>}user\n\x80\xa0{<end_of_turn>}\n{<start_of_turn>}model\n");
    close_vocab(&o);
}

static void wrong_turns_are_refused(void **state)
{
    (void)state;
    opened o = open_bpe(cases[0].chat_template, 3, NULL);
    const tmx_turn half[] = { { "a", "b" }, { "c", NULL } };
    const tmx_chat wrong[] = {
        { .user = "x", .n_turns = 1 }, { .user = "x", .turns = half, .n_turns = -1 }, { .user = "x", .turns = half, .n_turns = 2 }, { .turns = half },
    };
    for (size_t i = 0; i < COUNT(wrong); i++) {
        size_t n = 3;
        tmx_error err;
        assert_int_equal(vocab_chat_tokenize(o.v, &wrong[i], NULL, 0, &n, &err), TMX_E_ARG);
        assert_int_equal(n, 3);
    }
    close_vocab(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(formats_are_written_as_published),
        cmocka_unit_test(the_space_of_mistral_comes_once),
        cmocka_unit_test(an_empty_text_brings_no_space),
        cmocka_unit_test(no_text_opens_or_closes_a_turn),
        cmocka_unit_test(bos_comes_once),
        cmocka_unit_test(the_closing_mark_ends_an_answer),
        cmocka_unit_test(gemma_3_needs_no_template),
        cmocka_unit_test(other_templates_are_unknown),
        cmocka_unit_test(unicode_white_space_is_trimmed),
        cmocka_unit_test(wrong_turns_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
