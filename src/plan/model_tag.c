#include "plan/model_tag.h"

#include "base/status.h"

#include <string.h>

/* Length of the UTF-8 sequence at s (1..4), 0 if it is none: overlong forms, surrogates and > U+10FFFF are refused. */
static size_t utf8_sequence(const unsigned char *s)
{
    if (s[0] < 0x80) return 1;
    if (s[0] < 0xc2 || s[0] > 0xf4) return 0;
    const size_t n = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    const unsigned char low = s[0] == 0xe0 ? 0xa0 : s[0] == 0xf0 ? 0x90 : 0x80;
    const unsigned char high = s[0] == 0xed ? 0x9f : s[0] == 0xf4 ? 0x8f : 0xbf;
    if (s[1] < low || s[1] > high) return 0;
    for (size_t i = 2; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0;           /* also stops at the NUL */
    }
    return n;
}

bool is_utf8(const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    while (*s != '\0') {
        const size_t n = utf8_sequence(s);
        if (n == 0) return false;
        s += n;
    }
    return true;
}

/* Names come from model files: any bytes, any length.  The copy is cut between characters; bytes that are no UTF-8
 * become '?', since a plan file could not hold them. */
static void copy_name(char *to, size_t size, const char *from)
{
    size_t n = 0;
    for (const unsigned char *s = (const unsigned char *)from; *s != '\0';) {
        const size_t n_seq = utf8_sequence(s), n_bytes = n_seq == 0 ? 1 : n_seq;
        if (n + n_bytes >= size) break;
        if (n_seq == 0) to[n] = '?';
        else memcpy(to + n, s, n_seq);
        n += n_bytes;
        s += n_bytes;
    }
    to[n] = '\0';
}

model_tag model_tag_of(const tmx_model_info *info)
{
    model_tag tag = { .architecture = "", .name = "", .fingerprint = "" };
    copy_name(tag.architecture, sizeof tag.architecture, info->architecture);
    copy_name(tag.name, sizeof tag.name, info->name != NULL ? info->name : "");
    copy_name(tag.fingerprint, sizeof tag.fingerprint, info->fingerprint != NULL ? info->fingerprint : "");
    return tag;
}

tmx_status model_tag_read(const strict_reader *r, json_t *root, model_tag *tag, int32_t *n_layers)
{
    static const char *const known[] = { "architecture", "name", "n_layers", "fingerprint", NULL };
    json_t *model;
    TRY(strict_get_typed(r, root, "model", JSON_OBJECT, "an object", &model));
    TRY(strict_refuse_unknown_fields(r, model, "model.", known));
    TRY(strict_get_text(r, model, "model.architecture", tag->architecture, sizeof tag->architecture));
    TRY(strict_get_optional_text(r, model, "model.name", tag->name, sizeof tag->name));
    TRY(strict_get_optional_text(r, model, "model.fingerprint", tag->fingerprint, sizeof tag->fingerprint));
    const size_t n = strlen(tag->fingerprint), n_hex = strspn(tag->fingerprint, "0123456789abcdef");
    if (n != n_hex || (n != 0 && n != 64)) {
        return strict_refuse_field(r, "model.fingerprint", "found \"%.16s\" (%zu bytes), expected 64 hex digits (0-9a-f) or"
                                   " \"\"", tag->fingerprint, n);
    }
    return strict_get_count(r, model, "model.n_layers", 1, n_layers);
}

tmx_status model_tag_check(const strict_reader *r, const model_tag *tag, int32_t n_layers, const tmx_model_info *info)
{
    const bool is_any = tag->architecture[0] == '\0';
    if ((!is_any && strcmp(tag->architecture, info->architecture) != 0) || n_layers != info->n_layers) {
        return refuse(r->err, TMX_E_UNSUPPORTED, "%s: made for %s with %d layers, this model is %.24s with %d layers",
                      r->file, is_any ? "any model" : tag->architecture, n_layers, info->architecture, info->n_layers);
    }
    const bool is_known = info->fingerprint != NULL && info->fingerprint[0] != '\0';
    if (is_known && tag->fingerprint[0] != '\0' && strcmp(tag->fingerprint, info->fingerprint) != 0) {
        return refuse(r->err, TMX_E_UNSUPPORTED, "%s: made for another model file, other LoRA adapters or another "
                      "RoPE base (fingerprint %.12s, here %.12s); set \"fingerprint\" to \"\" to use it anyway", r->file,
                      tag->fingerprint, info->fingerprint);
    }
    return TMX_OK;
}

json_t *model_tag_json(const model_tag *tag, int32_t n_layers)
{
    return json_pack("{s:s, s:s, s:i, s:s}", "architecture", tag->architecture, "name", tag->name, "n_layers", (int)n_layers,
                     "fingerprint", tag->fingerprint);
}
