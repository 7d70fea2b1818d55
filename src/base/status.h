/* status.h - how failures travel.  In: a code and a printf text.  Out: the code, with the text in an optional
 * tmx_error.  Never prints, never exits.  Usage:  return refuse(err, TMX_E_FORMAT, "%s: shape ...", name);  */
#ifndef TMX_BASE_STATUS_H
#define TMX_BASE_STATUS_H

#include "tmx.h"

__attribute__((format(printf, 3, 4)))
void error_set(tmx_error *err, tmx_status code, const char *format, ...);

/* An expression of the value `code`: readers, compilers and analysers see at the call that it is a failure. */
#define refuse(err, code, ...) (error_set((err), (code), __VA_ARGS__), (code))

/* Hands a failure up unchanged: TRY(call(..., err)); */
#define TRY(call) do { tmx_status try_status_ = (call); if (try_status_ != TMX_OK) return try_status_; } while (0)

#endif
