// Float weights times many tokens by OpenBLAS, where the user asked for it (docs/openblas.md).
//
// The library is found at run time and is no build dependency. Each thread of the team calls its
// own single-threaded sgemm on its own rows, so that OpenBLAS starts no threads beside ours.
// Weights stay packed: a panel of them is converted to float32 in the thread's scratch, and
// multiplied.
//
// A sum's order is then OpenBLAS's affair and may depend on the number of tokens, so batched =
// alone and chunked = whole do not hold for what comes from here.
#pragma once

#include "ops/matmul.h"

namespace rillm {

// Loads the library at `path`; CoreStatus. A second library in one process is an error.
int load_blas(const char* path);
bool has_blas();
const char* blas_info();  // e.g. "OpenBLAS 0.3.21 Zen", or "" before load_blas

// A panel: rows that are multiplied in one call, and columns converted at a time. Enough rows that
// sgemm's packing of the activations, once for each panel, costs little beside the products.
inline constexpr int64_t kPanelRows = (256 + Tile::kRows - 1) / Tile::kRows * Tile::kRows;
inline constexpr int64_t kPanelCols = 512;
inline constexpr int64_t kPanelFloats = kPanelRows * kPanelCols;

// Tiles [begin, end) of float W, at most kPanelRows rows, for all tokens of x [num_tokens, cols].
// scratch: kPanelFloats of this thread.
void blas_tiles(const PackedMatrix& w, int64_t begin, int64_t end, const float* x,
                int64_t num_tokens, const MatmulOutput& out, float* scratch);

}  // namespace rillm
