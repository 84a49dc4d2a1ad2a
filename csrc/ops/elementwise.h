// Ops on one row at a time. Widths are multiples of 32, so of kLanes too. Rows may be in place.
#pragma once

#include <cstdint>

namespace rillm {

// out = [residual +] x / sqrt(mean(x^2) + eps) * weight   (Zhang and Sennrich, 2019)
void rmsnorm_row(const float* x, const float* weight, const float* residual, float eps, float* out,
                 int64_t width);

// out [width] = silu(x[0:width]) * x[width:2 width]   (Shazeer, 2020); silu(x) = x / (1 + e^-x)
void swiglu_row(const float* x, float* out, int64_t width);

// out [width] = the sum over the rows of x [num_rows, stride] of their first `width` squares.
void sum_squares_columns(const float* x, int64_t num_rows, int64_t stride, float* out,
                         int64_t width);

void add_row(const float* a, const float* b, float* out, int64_t width);

// table [2 n]: cos then sin of position * frequency[i], times `magnitude` (YaRN's attention
// factor).
void rope_table_row(int32_t position, const float* frequency, float magnitude, float* table,
                    int64_t n);

// Rotates the first 2n dimensions of one head by the table; the others pass through (Su et al.,
// 2021). interleaved: pairs (2i, 2i + 1), GLM's and GGUF llama's form; else (i, i + n), NEOX's.
void rope_head(const float* table, bool interleaved, float* head, int64_t n);

}  // namespace rillm
