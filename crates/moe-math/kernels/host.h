// What portable.h needs where there is no CUDA: for tests.
#pragma once
#include <pthread.h>
#include <string.h>

struct place {
  int thread, threads, block_x, block_y;
  pthread_barrier_t *barrier;
};
extern _Thread_local struct place place;

#define KERNEL static void
#define SHARED static // blocks run one after another
#define FUNCTION static inline
#define SYNC() pthread_barrier_wait(place.barrier)
#define THREAD place.thread
#define THREADS place.threads
#define BLOCK_X place.block_x
#define BLOCK_Y place.block_y
#define UNROLL

static inline float FLOAT_OF(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static inline uint32_t BITS_OF(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
