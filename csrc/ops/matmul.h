// y = x W^T: one template for every format, GEMV and GEMM.
//
// A lane of the vectors is a row of W, so a sum runs down a lane and is never reduced across lanes;
// and for every row and token it runs over the columns in the same order, whatever the number of
// tokens, threads or tiles. That is why batched = alone and chunked = whole, bit for bit.
//
// Cost of one strip (32 columns of kRows rows): its bytes are read once from memory and unpacked
// once for up to Tile::kMaxTokens tokens; then a token costs 32 / kGroup dot instructions and one
// conversion, multiply and fused multiply-add. Decode is bound by the bytes, prefill by the dots.
#pragma once

#include "layouts/packed_matrix.h"
#include "ops/activations.h"

namespace rillm {

// What a linear op does with one weight's result.
struct MatmulOutput {
  float* y;               // [num_tokens, stride], at the weight's first column
  int64_t stride;         // floats between tokens
  const float* bias;      // [rows] or null
  const float* residual;  // as y (may be y itself), or null
};

// Rows of W's tiles [tile, tile + num_tiles) for tokens [begin, end) of num_tokens.
// x: the whole input buffer: Q8 groups (quantised W) or float32 rows of W's width. For Q8, begin
// and end must be group boundaries: multiples of Tile::kMaxTokens, or num_tokens.
void matmul_tiles(const PackedMatrix& w, int64_t tile, int64_t num_tiles, const uint8_t* x,
                  int64_t begin, int64_t end, int64_t num_tokens, const MatmulOutput& out);

}  // namespace rillm
