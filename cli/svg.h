/* svg.h - what every picture of the command line shares: a file that is written whole, its frame, text from outside. */
#ifndef TMX_CLI_SVG_H
#define TMX_CLI_SVG_H

#include <stdio.h>

/* Creates the file, lets draw write it, and says what failed.  Returns an exit code. */
int svg_write(const char *path, void (*draw)(FILE *out, const void *what), const void *what);

/* The opening tag and a white ground; then the closing tag. */
void svg_begin(FILE *out, int width, int height);
void svg_end(FILE *out);

/* Text between tags, at most n_most bytes of it; what is not printable ASCII becomes '?'. */
void svg_put_text(FILE *out, const char *text, int n_most);

#endif
