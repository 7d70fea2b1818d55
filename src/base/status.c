#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>

void error_set(tmx_error *err, tmx_status code, const char *format, ...)
{
    if (err != NULL) {
        err->code = code;
        va_list args;
        va_start(args, format);
        vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
        for (char *c = err->text; *c != '\0'; c++) {       /* names from files must not break the one-line promise */
            if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
        }
    }
}

const char *tmx_version(void) { return TMX_VERSION; }

const char *tmx_status_name(tmx_status code)
{
    switch (code) {
    case TMX_OK: return "TMX_OK";
    case TMX_E_ARG: return "TMX_E_ARG";
    case TMX_E_IO: return "TMX_E_IO";
    case TMX_E_FORMAT: return "TMX_E_FORMAT";
    case TMX_E_UNSUPPORTED: return "TMX_E_UNSUPPORTED";
    case TMX_E_MEMORY: return "TMX_E_MEMORY";
    case TMX_E_FULL: return "TMX_E_FULL";
    case TMX_E_NUMERIC: return "TMX_E_NUMERIC";
    case TMX_E_CANCELLED: return "TMX_E_CANCELLED";
    case TMX_E_DEVICE: return "TMX_E_DEVICE";
    }
    return "TMX_E_?";
}
