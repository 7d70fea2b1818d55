/* unsanitized.h - for the reference arithmetic of tests: plain sums over arrays that the test itself made, where a sanitizer finds
 * nothing and takes most of the time. */
#ifndef TMX_TESTS_UNSANITIZED_H
#define TMX_TESTS_UNSANITIZED_H

#define UNSANITIZED __attribute__((no_sanitize("address"), no_sanitize("undefined")))

#endif
