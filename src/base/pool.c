#include "base/pool.h"

#include "base/mem.h"
#include "base/status.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

enum { MAX_THREADS = 1024, SPINS_BEFORE_SLEEP = 2000 };

typedef struct pool_worker {
    tmx_pool *pool;
    pthread_t handle;
    int32_t thread;
} pool_worker;

/* One job at a time.  `generation` announces it, `n_busy` counts workers that have not finished it.  Workers spin a
 * little before sleeping, since a layer issues a job every few hundred microseconds, in decoding every few tens; who spins needs no
 * lock.  A worker counts itself asleep before it looks for the last time, and a job looks for sleepers after it is announced, so
 * one of the two sees the other. */
struct tmx_pool {
    int32_t n_threads, n_started;
    pool_worker *workers;          /* [n_threads - 1] */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    atomic_uint generation;
    atomic_int next_task, n_busy, n_asleep;
    atomic_bool is_closing;
    int32_t n_tasks;
    pool_task *run;
    void *ctx;
};

static void run_tasks(tmx_pool *pool, int32_t thread)
{
    for (;;) {
        const int32_t task = atomic_fetch_add_explicit(&pool->next_task, 1, memory_order_relaxed);
        if (task >= pool->n_tasks) return;
        pool->run(pool->ctx, task, thread);
    }
}

static void relax(int32_t spin)
{
    if (spin % 64 == 63) sched_yield();
    else __builtin_ia32_pause();
}

static void sleep_until_next(tmx_pool *pool, unsigned seen)
{
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->n_asleep, 1);
    while (atomic_load(&pool->generation) == seen) pthread_cond_wait(&pool->wake, &pool->lock);
    atomic_fetch_sub(&pool->n_asleep, 1);
    pthread_mutex_unlock(&pool->lock);
}

static void *worker_main(void *arg)
{
    const pool_worker *worker = arg;
    tmx_pool *pool = worker->pool;
    unsigned seen = 0;
    for (;;) {
        for (int32_t spin = 0; spin < SPINS_BEFORE_SLEEP && atomic_load(&pool->generation) == seen; spin++) relax(spin);
        if (atomic_load(&pool->generation) == seen) sleep_until_next(pool, seen);
        seen = atomic_load(&pool->generation);
        if (atomic_load(&pool->is_closing)) return NULL;
        run_tasks(pool, worker->thread);
        atomic_fetch_sub(&pool->n_busy, 1);
    }
}

static void announce(tmx_pool *pool)
{
    atomic_fetch_add(&pool->generation, 1);
    if (atomic_load(&pool->n_asleep) == 0) return;
    pthread_mutex_lock(&pool->lock);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

void pool_run(tmx_pool *pool, int32_t n_tasks, pool_task *run, void *ctx)
{
    if (pool == NULL || pool->n_threads == 1 || n_tasks <= 1) {
        for (int32_t task = 0; task < n_tasks; task++) run(ctx, task, 0);
        return;
    }
    pool->n_tasks = n_tasks;
    pool->run = run;
    pool->ctx = ctx;
    atomic_store(&pool->next_task, 0);
    atomic_store(&pool->n_busy, pool->n_threads - 1);
    announce(pool);
    run_tasks(pool, 0);
    for (int32_t spin = 0; atomic_load(&pool->n_busy) > 0; spin++) relax(spin);
}

static int32_t usable_cores(void)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int32_t)n : 1;
}

tmx_status tmx_pool_create(tmx_pool **out, int32_t n_threads, tmx_error *err)
{
    if (out == NULL) return refuse(err, TMX_E_ARG, "tmx_pool_create: pool is NULL");
    if (n_threads < 0 || n_threads > MAX_THREADS) {
        return refuse(err, TMX_E_ARG, "threads: %d is out of range 0..%d", n_threads, MAX_THREADS);
    }
    if (n_threads == 0) {
        n_threads = usable_cores();
        if (n_threads > MAX_THREADS) n_threads = MAX_THREADS;
    }
    tmx_pool *pool = mem_alloc(1, sizeof *pool);
    if (pool == NULL) return refuse(err, TMX_E_MEMORY, "thread pool: out of memory");
    pool->n_threads = n_threads;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->workers = mem_alloc((size_t)n_threads, sizeof *pool->workers);
    if (pool->workers == NULL) {
        tmx_pool_free(pool);
        return refuse(err, TMX_E_MEMORY, "thread pool: out of memory");
    }
    for (int32_t i = 0; i < n_threads - 1; i++) {
        pool->workers[i] = (pool_worker){ .pool = pool, .thread = i + 1 };
        if (pthread_create(&pool->workers[i].handle, NULL, worker_main, &pool->workers[i]) != 0) {
            tmx_pool_free(pool);
            return refuse(err, TMX_E_MEMORY, "thread pool: the system refused thread %d of %d", i + 2, n_threads);
        }
        pool->n_started = i + 1;
    }
    *out = pool;
    return TMX_OK;
}

int32_t tmx_pool_n_threads(const tmx_pool *pool) { return pool == NULL ? 1 : pool->n_threads; }

void tmx_pool_free(tmx_pool *pool)
{
    if (pool == NULL) return;
    atomic_store(&pool->is_closing, true);
    announce(pool);
    for (int32_t i = 0; i < pool->n_started; i++) pthread_join(pool->workers[i].handle, NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    mem_free(pool->workers);
    mem_free(pool);
}
