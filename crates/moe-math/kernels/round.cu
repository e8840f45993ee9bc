// GPTQ's columns (2210.17323, Algorithm 1): see src/kernels/round.rs.
#include "portable.h"

// Columns of a block: their errors stay in registers.
#define LIMIT 32

struct RoundBlock {
  float *state;          // [3, experts, size, rows]: weights, and what columns before the block feed to them; then errors, codes, and what
                         // the fed weights are off by
  const float *feedback; // [experts, size, size], below the diagonal
  const float *grids;    // [2, experts, columns, rows]: scales and signed zeros
  int32_t experts, size, rows;
  int32_t columns; // 1, or as many as size
  float low, high; // least and greatest signed code
};

// A thread takes a row of a matrix, and rounds the block's columns one after another.
KERNEL round_block(struct RoundBlock p) {
  SHARED float feedback[LIMIT * LIMIT];
  const int expert = BLOCK_X, row = BLOCK_Y * THREADS + THREAD;
  for (int i = THREAD; i < p.size * p.size; i += THREADS)
    feedback[i / p.size * LIMIT + i % p.size] = p.feedback[(size_t)expert * p.size * p.size + i];
  SYNC();
  if (row >= p.rows) return;
  const size_t planes = (size_t)p.experts * p.size * p.rows, grids = (size_t)p.experts * p.columns * p.rows;
  float errors[LIMIT];
  UNROLL for (int i = 0; i < LIMIT; i++) {
    if (i < p.size) {
      const size_t at = ((size_t)expert * p.size + i) * p.rows + row;
      const size_t grid = ((size_t)expert * p.columns + (p.columns == 1 ? 0 : i)) * p.rows + row;
      const float weight = p.state[at], scale = p.grids[grid], zero = p.grids[grids + grid];
      float best = p.state[planes + at];
      UNROLL for (int j = 0; j < i; j++) best += feedback[i * LIMIT + j] * errors[j];
      best += weight;
      const float code = rintf(fminf(fmaxf(best / scale + zero, p.low), p.high));
      const float value = (code - zero) * scale;
      errors[i] = weight - value;
      p.state[at] = errors[i];
      p.state[planes + at] = code;
      p.state[2 * planes + at] = best - value;
    }
  }
}

struct Settle {
  float *values;         // [experts, size, rows]: B, then X
  const float *feedback; // [experts, size, size], below the diagonal
  int32_t experts, size, rows;
};

// Columns of the feedback that are held at a time.
#define HELD 128

// X with A^T X = B for a unit lower triangular A^T: what the columns of a group would take if none of them were rounded.
KERNEL settle(struct Settle p) {
  SHARED float held[HELD];
  const int expert = BLOCK_X, row = BLOCK_Y * THREADS + THREAD;
  float *values = p.values + (size_t)expert * p.size * p.rows + row;
  const float *feedback = p.feedback + (size_t)expert * p.size * p.size;
  for (int i = 1; i < p.size; i++) {
    float sum = 0;
    for (int first = 0; first < i; first += HELD) {
      const int count = i - first < HELD ? i - first : HELD;
      SYNC();
      for (int j = THREAD; j < count; j += THREADS) held[j] = feedback[(size_t)i * p.size + first + j];
      SYNC();
      if (row < p.rows)
        for (int j = 0; j < count; j++) sum += held[j] * values[(size_t)(first + j) * p.rows];
    }
    if (row < p.rows) values[(size_t)i * p.rows] -= sum;
  }
}

struct GroupGrids {
  const float *members; // [groups, size, rows]
  const float *energy;  // [groups, size]
  float *grids;         // [2, groups, rows]: scales and signed zeros
  int32_t groups, size, rows;
  int32_t symmetric, clips; // clips: how many smaller ranges are tried, down to half
  int32_t mantissa;         // bits of the mantissa that a scale is stored with: 23, 10 (float16) or 7 (bfloat16)
  float low, high;
};

// `scale`, which is not negative, as it will be read back; see Grid::stored.
FUNCTION float stored(float scale, int mantissa) {
  float most = FLOAT_OF(0x7f7fffffu), spacing = FLOAT_OF(0x34000000u);
  if (mantissa == 10) {
    most = 65504.0f, spacing = 0.0009765625f;
  } else if (mantissa == 7) {
    most = FLOAT_OF(0x7f7f0000u), spacing = 0.0078125f;
  }
  scale = fminf(scale, most);
  if (mantissa == 10 && scale < 6.103515625e-05f) {
    scale = rintf(scale * 16777216.0f) / 16777216.0f; // a subnormal float16 is a multiple of 2^-24
  } else if (mantissa != 23) {
    const int dropped = 23 - mantissa;
    const uint32_t bits = BITS_OF(scale);
    scale = FLOAT_OF((bits + ((1u << (dropped - 1)) - 1) + (bits >> dropped & 1)) >> dropped << dropped);
  }
  return scale == 0 ? spacing : scale;
}

// A thread takes a group of a row.
KERNEL group_grids(struct GroupGrids p) {
  const int group = BLOCK_X, row = BLOCK_Y * THREADS + THREAD;
  if (row >= p.rows) return;
  const float *members = p.members + (size_t)group * p.size * p.rows + row;
  const float *energy = p.energy + (size_t)group * p.size;
  float least = members[0], most = least;
  for (int k = 1; k < p.size; k++) {
    const float value = members[(size_t)k * p.rows];
    least = fminf(least, value), most = fmaxf(most, value);
  }
  float best_scale = 0, best_zero = 0, best_error = 0;
  for (int clip = 0; clip <= p.clips; clip++) {
    // In double, since a zero that falls on the other side of a tie moves every code of its group.
    const float kept = clip == 0 ? 1.0f : (float)(1.0 - 0.5 * clip / p.clips);
    const double from = fmin((double)(least * kept), 0.0), to = fmax((double)(most * kept), 0.0);
    const double low = p.low, high = p.high;
    const double exact = p.symmetric ? fmax(to, -from) / ((high - low) / 2.0) : (to - from) / (high - low);
    const float scale = stored((float)exact, p.mantissa);
    float zero = 0;
    if (!p.symmetric && exact != 0) zero = (float)rint(fmin(fmax(low - from / (double)scale, low), high));
    float error = 0;
    for (int k = 0; p.clips > 0 && k < p.size; k++) {
      const float value = members[(size_t)k * p.rows];
      const float lost = value - (rintf(fminf(fmaxf(value / scale + zero, p.low), p.high)) - zero) * scale;
      error += energy[k] * lost * lost;
    }
    if (clip == 0 || error < best_error) best_scale = scale, best_zero = zero, best_error = error;
  }
  p.grids[(size_t)group * p.rows + row] = best_scale;
  p.grids[((size_t)p.groups + group) * p.rows + row] = best_zero;
}
