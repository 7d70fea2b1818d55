#include "fault.h"

#include <stdarg.h>
#include <stdio.h>

void fault_set(tmx_error *err, tmx_status code, const char *format, ...)
{
    if (err == NULL) return;
    va_list args;
    va_start(args, format);
    vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    err->code = code;
    for (char *c = err->text; *c != '\0'; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
    }
}
