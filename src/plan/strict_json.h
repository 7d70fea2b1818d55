/* strict_json.h - JSON files of ours (plans, probe reports): read strictly, written whole or not at all.  In: a path or
 * text.  Out: a jansson value, or one line that names file and field.  jansson proves the syntax and knows line and column; the
 * getters prove the meaning. */
#ifndef TMX_PLAN_STRICT_JSON_H
#define TMX_PLAN_STRICT_JSON_H

#include "tmx.h"

#include <jansson.h>

typedef struct strict_reader {
    const char *file;              /* as shown: path_tail */
    const char *what;              /* "plan" */
    size_t max_bytes;
    tmx_error *err;
} strict_reader;

/* The value to be json_decref'd.  TMX_E_FORMAT with line and column, TMX_E_MEMORY. */
tmx_status strict_parse(const strict_reader *r, const char *text, size_t n_bytes, json_t **root);
/* The bytes of an open regular file of at most max_bytes, mem_free()d by the caller.  TMX_E_IO, TMX_E_FORMAT, TMX_E_MEMORY. */
tmx_status strict_read_file(const strict_reader *r, int fd, char **text, size_t *n_bytes);
int strict_open(const char *path);                     /* for reading; -1 and errno; a FIFO does not block */

/* The root: an object whose "format" is this name and whose "version" this number, with no field but the known ones (up to a
 * NULL).  TMX_E_UNSUPPORTED for another version. */
tmx_status strict_check_format(const strict_reader *r, json_t *root, const char *format, int32_t last_version, const char *const *known);

/* A field is given as the path shown to the user ("model.name"); its last part is the key. */
json_t *strict_find(json_t *object, const char *field);
const char *strict_type_name(const json_t *value);     /* "an object" */
__attribute__((format(printf, 3, 4)))
tmx_status strict_refuse_field(const strict_reader *r, const char *field, const char *format, ...);
tmx_status strict_get_typed(const strict_reader *r, json_t *object, const char *field, json_type type, const char *expected,
                            json_t **value);
tmx_status strict_get_count(const strict_reader *r, json_t *object, const char *field, int32_t min, int32_t *count);
tmx_status strict_get_text(const strict_reader *r, json_t *object, const char *field, char *text, size_t size);
/* Leaves text as it is if the field is absent. */
tmx_status strict_get_optional_text(const strict_reader *r, json_t *object, const char *field, char *text, size_t size);
tmx_status strict_refuse_unknown_fields(const strict_reader *r, json_t *object, const char *inside, const char *const *known);

/* A whole number is a number, too; not negative unless is_signed. */
tmx_status strict_get_number(const strict_reader *r, json_t *object, const char *field, bool is_signed, double *number);

/* root as indented text with a final newline, mem_free()d by the caller; takes root over (NULL: out of memory).  n_digits of
 * fractions: 17 keep every bit. */
tmx_status strict_text(json_t *root, const char *what, size_t n_digits, char **text, size_t *n_bytes, tmx_error *err);
/* Atomically: temporary file, fsync, rename. */
tmx_status strict_write_file(const char *path, const char *text, size_t n_bytes, tmx_error *err);

/* The end of a long path, so that a message of 256 bytes keeps room for the reason. */
const char *path_tail(const char *path);

#endif
