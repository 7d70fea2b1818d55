#include "svg.h"

#include "report.h"

#include <errno.h>
#include <string.h>

int svg_write(const char *path, void (*draw)(FILE *out, const void *what), const void *what)
{
    FILE *out = fopen(path, "w");
    if (out == NULL) return complain(EXIT_INPUT, "%s: cannot be created: %s", path, strerror(errno));
    errno = 0;
    draw(out, what);
    const bool is_written = !ferror(out);
    const int why = errno;
    if (fclose(out) == 0 && is_written) return 0;
    return complain(EXIT_INPUT, "%s: cannot be written: %s", path, strerror(is_written ? errno : why));
}

void svg_begin(FILE *out, int width, int height)
{
    fprintf(out, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" fill=\"#222\">\n"
            "<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n", width, height, width, height);
}

void svg_end(FILE *out) { fputs("</svg>\n", out); }

void svg_put_text(FILE *out, const char *text, int n_most)
{
    for (int i = 0; text[0] != '\0' && i < n_most; i++, text++) {
        const unsigned char c = (unsigned char)*text;
        if (c == '<') fputs("&lt;", out);
        else if (c == '>') fputs("&gt;", out);
        else if (c == '&') fputs("&amp;", out);
        else if (c == '"') fputs("&quot;", out);
        else fputc(c < 0x20 || c >= 0x7f ? '?' : c, out);
    }
}
