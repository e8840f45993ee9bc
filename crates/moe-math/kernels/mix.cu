// Outputs of experts added up token by token: see src/kernels/mix.rs.
#include "portable.h"

struct Mix {
  float *sums;           // [tokens, hidden]
  const void *outputs;   // [rows, hidden]
  const uint32_t *table; // [tokens + 1] where each token's entries begin; of each entry its row; of each its gate, as bits
  int32_t tokens, hidden, entries, halves; // halves: whether outputs are bfloat16, for the host
};

// A CUDA block takes a token, a thread an element of its sum, which no other one writes: entries are added in their order.
#define MIX(NAME, TYPE, WIDE)                                                  \
  KERNEL NAME(struct Mix p) {                                                  \
    const int token = BLOCK_X, h = BLOCK_Y * THREADS + THREAD;                 \
    if (h >= p.hidden) return;                                                 \
    const TYPE *outputs = (const TYPE *)p.outputs + h;                         \
    const uint32_t *rows = p.table + p.tokens + 1, *gates = rows + p.entries;  \
    float *sum = p.sums + (size_t)token * p.hidden + h, value = *sum;          \
    for (uint32_t i = p.table[token]; i < p.table[token + 1]; i++)             \
      value += FLOAT_OF(gates[i]) * WIDE(outputs[(size_t)rows[i] * p.hidden]); \
    *sum = value;                                                              \
  }

MIX(mix_f32, float, )
MIX(mix_bf16, uint16_t, of_bf16)
