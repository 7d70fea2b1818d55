/* pool.h - a fixed set of worker threads.  In: a number of tasks and a function.  Out: every task ran exactly once.
 * Tasks are handed out in index order, whoever is free takes the next; since a task owns its outputs, results do not
 * depend on who ran it.  Never nests: a task must not call pool_run.  pool NULL = run in the caller. */
#ifndef TMX_BASE_POOL_H
#define TMX_BASE_POOL_H

#include "tmx.h"

/* thread is in [0, tmx_pool_n_threads): the index of per-thread scratch. */
typedef void pool_task(void *ctx, int32_t task, int32_t thread);

void pool_run(tmx_pool *pool, int32_t n_tasks, pool_task *run, void *ctx);
static inline int32_t pool_n_threads(const tmx_pool *pool) { return pool == NULL ? 1 : tmx_pool_n_threads(pool); }

#endif
