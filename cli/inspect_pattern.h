/* inspect_pattern.h - tmx inspect --pattern: which tiles of one head of one layer a prompt visits.  In: options, checked.  Out: a line
 * on standard output, a picture.  Returns an exit code and has complained when it is not 0. */
#ifndef TMX_CLI_INSPECT_PATTERN_H
#define TMX_CLI_INSPECT_PATTERN_H

#include "commands.h"

int inspect_pattern(const inspect_options *o);

#endif
