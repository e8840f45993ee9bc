// All kernels as functions of the host, for tests (src/kernels/tests.rs): host_NAME runs one, size_NAME is the size of its arguments.
#define _POSIX_C_SOURCE 200809L // pthread barriers
#include <stdlib.h>

#include "cholesky.cu"
#include "mix.cu"
#include "round.cu"

_Thread_local struct place place;

struct run {
  void (*kernel)(const void *);
  const void *arguments;
  struct place place;
};

static void *thread(void *of) {
  const struct run *run = of;
  place = run->place;
  run->kernel(run->arguments);
  return NULL;
}

static void block(void (*kernel)(const void *), const void *arguments, struct place at) {
  pthread_barrier_t barrier;
  pthread_t *threads = malloc(at.threads * sizeof *threads);
  struct run *runs = malloc(at.threads * sizeof *runs);
  if (!threads || !runs || pthread_barrier_init(&barrier, NULL, at.threads)) abort();
  at.barrier = &barrier;
  for (at.thread = 0; at.thread < at.threads; at.thread++) {
    runs[at.thread] = (struct run){kernel, arguments, at};
    if (pthread_create(&threads[at.thread], NULL, thread, &runs[at.thread])) abort();
  }
  for (int i = 0; i < at.threads; i++) pthread_join(threads[i], NULL);
  pthread_barrier_destroy(&barrier);
  free(threads);
  free(runs);
}

#define HOST(NAME, TYPE)                                                                         \
  static void NAME##_of(const void *arguments) { NAME(*(const struct TYPE *)arguments); }        \
  void host_##NAME(const void *arguments, int blocks_x, int blocks_y, int threads) {             \
    for (int y = 0; y < blocks_y; y++)                                                           \
      for (int x = 0; x < blocks_x; x++)                                                         \
        block(NAME##_of, arguments, (struct place){.threads = threads, .block_x = x, .block_y = y}); \
  }                                                                                              \
  size_t size_##NAME(void) { return sizeof(struct TYPE); }

HOST(cholesky_block, CholeskyBlock)
HOST(group_grids, GroupGrids)
HOST(mix_bf16, Mix)
HOST(mix_f32, Mix)
HOST(round_block, RoundBlock)
HOST(settle, Settle)
