/* bench_picture.h - tests of tmx bench as SVG: time to first token over the prompt's length, and attention time by layer at the
 * longest of them, a line for every plan. */
#ifndef TMX_CLI_BENCH_PICTURE_H
#define TMX_CLI_BENCH_PICTURE_H

#include "bench_report.h"

/* Draws the tests that only prefill, of the smallest depth they were run at.  Returns an exit code. */
int write_bench_picture(const char *path, const bench_facts *facts, const bench_run *run);

#endif
