// A diagonal block of the Cholesky factor that begins with the last column: see src/kernels/cholesky.rs.
#include "portable.h"

// Columns of a block, and threads that take one each.
#define SIDE 64

struct CholeskyBlock {
  const float *block; // [matrices, size, size], symmetric; what lies above the diagonal is not read
  float *found;       // [matrices, 2 size + 1, size]: M, M^-T, and behind them whether there is none
  int32_t matrices, size;
};

// M with M^T M = S, M lower triangular, and its inverse, transposed. A CUDA block takes a matrix, a thread a column.
KERNEL cholesky_block(struct CholeskyBlock p) {
  SHARED float m[SIDE * SIDE];
  const int size = p.size, column = THREAD;
  const float *block = p.block + (size_t)BLOCK_X * size * size;
  float *found = p.found + (size_t)BLOCK_X * (2 * size + 1) * size;
  int failed = 0;
  for (int k = size - 1; k >= 0; k--) {
    if (column <= k) {
      float value = block[k * size + column];
      for (int c = k + 1; c < size; c++) value -= m[c * SIDE + k] * m[c * SIDE + column];
      m[k * SIDE + column] = value;
    }
    SYNC();
    const float square = m[k * SIDE + k];
    float pivot = sqrtf(square);
    if (!(pivot > 0 && pivot <= FLOAT_OF(0x7f7fffffu))) pivot = 1, failed = 1;
    SYNC();
    if (column <= k) m[k * SIDE + column] = column == k ? pivot : m[k * SIDE + column] / pivot;
    SYNC();
  }
  float *inverse = found + size * size;
  for (int row = size - 1; row >= 0; row--) {
    found[row * size + column] = column <= row ? m[row * SIDE + column] : 0;
    float value = 0;
    if (row <= column) {
      value = row == column;
      for (int c = row + 1; c <= column; c++) value -= m[c * SIDE + row] * inverse[c * size + column];
      value /= m[row * SIDE + row];
    }
    inverse[row * size + column] = value;
  }
  found[2 * size * size + column] = failed;
}
