/* cpu.h - which instruction-set rungs this CPU (and its operating system) can run.  Set once, never changes. */
#ifndef TMX_BASE_CPU_H
#define TMX_BASE_CPU_H

#include "tmx.h"

/* AUTO -> the best rung; any other value is returned as it is if the CPU has it, else lowered to the best it has. */
tmx_isa cpu_isa_resolve(tmx_isa isa);
bool cpu_has(tmx_isa isa);

#endif
