/* fault.h - how failures of this room travel: as the library's, a status and one line of text. */
#ifndef TMX_EVAL_FAULT_H
#define TMX_EVAL_FAULT_H

#include "tmx.h"

/* err may be NULL.  Control characters become '?', so that the text stays one line whatever it quotes. */
__attribute__((format(printf, 3, 4)))
void fault_set(tmx_error *err, tmx_status code, const char *format, ...);

/* An expression of the value `code`, as in  return fault(err, TMX_E_FORMAT, "%s:%d: ...", path, line);  */
#define fault(err, code, ...) (fault_set((err), (code), __VA_ARGS__), (tmx_status)(code))

/* "out of memory for the text of a prompt" */
#define fault_memory(err, what) fault(err, TMX_E_MEMORY, "out of memory for %s", what)

/* Hands a failure up unchanged. */
#define TRY(call) do { const tmx_status try_status_ = (call); if (try_status_ != TMX_OK) return try_status_; } while (0)

#endif
