#include "ops/matmul.h"

#include <algorithm>

#include "ops/matmul_parts.h"
#ifdef RILLM_COLUMN_TILES
#include "ops/column_kernel.h"
#else
#include "ops/group_kernel.h"
#endif
#ifdef RILLM_BLOCK_TILES
#include "ops/block_kernel.h"
#include "ops/pair_kernel.h"
#endif
#ifdef RILLM_MATRIX_UNIT
#include "ops/matrix_kernel.h"
#endif

namespace rillm {
namespace {

template <class T>
Tile::F load_weights(const uint8_t* data);
struct Half {};
struct BFloat16 {};
template <>
Tile::F load_weights<float>(const uint8_t* data) {
  return Tile::load(reinterpret_cast<const float*>(data));
}
template <>
Tile::F load_weights<Half>(const uint8_t* data) {
  return Tile::load_half(reinterpret_cast<const uint16_t*>(data));
}
template <>
Tile::F load_weights<BFloat16>(const uint8_t* data) {
  return Tile::load_bfloat16(reinterpret_cast<const uint16_t*>(data));
}

template <class T, int num_bytes>
struct FloatKernel {
  static constexpr int kMaxTokens = Tile::kMaxFloatTokens;

  template <int n>
  static void run(const PackedMatrix& w, int64_t tile, const uint8_t* x, int64_t first_token,
                  const MatmulOutput& out) {
    Tile::F y[n];
    unroll<n>([&](auto token) RILLM_INLINE { y[token] = Tile::zero(); });
    const float* row = reinterpret_cast<const float*>(x) + first_token * w.cols;
    const uint8_t* data = w.tile(tile);
    for (int64_t k = 0; k < w.cols; ++k, data += num_bytes * Tile::kRows) {
      prefetch(data, num_bytes * Tile::kRows);
      const Tile::F weights = load_weights<T>(data);
      unroll<n>([&](auto token) RILLM_INLINE {
        y[token] = Tile::fma(weights, Tile::set1(row[token * w.cols + k]), y[token]);
      });
    }
    unroll<n>([&](auto token) RILLM_INLINE {
      store_rows(y[token], out, first_token + token, tile * Tile::kRows, w.rows);
    });
  }
};

// Tiles that a kernel takes together where there are many tokens.
template <class Kernel>
constexpr int tiles_together() {
  if constexpr (requires { typename Kernel::Block; }) return Kernel::Block::kTiles;
  return 1;
}

template <class Kernel>
void run_group(const PackedMatrix& w, int64_t tile, int num_tiles, const uint8_t* x, int64_t token,
               int size, const MatmulOutput& out) {
  if constexpr (tiles_together<Kernel>() > 1) {
    if (num_tiles == Kernel::Pair::kTiles) {
      if (size == 1) return Kernel::Pair::template run<1>(w, tile, x, token, out);
      if (size == 2) return Kernel::Pair::template run<2>(w, tile, x, token, out);
    }
    if (size > Kernel::Block::kRegisterTokens) {
      if (num_tiles == 1) return Kernel::Block::template run<1>(w, tile, x, token, size, out);
      return Kernel::Block::template run<Kernel::Block::kTiles>(w, tile, x, token, size, out);
    }
  }
  const auto run_if = [&]<int n>() {
    if constexpr (n <= Kernel::kMaxTokens) {
      if (size != n) return;
      for (int i = 0; i < num_tiles; ++i) Kernel::template run<n>(w, tile + i, x, token, out);
    }
  };
  run_if.template operator()<1>();
  run_if.template operator()<2>();
  run_if.template operator()<4>();
  if constexpr (tiles_together<Kernel>() == 1) {
    run_if.template operator()<8>();
    run_if.template operator()<16>();
  }
}

template <class Kernel>
void run_groups(const PackedMatrix& w, int64_t tile, int64_t end_tile, const uint8_t* x,
                int64_t begin, int64_t end, int64_t num_tokens, const MatmulOutput& out) {
  if constexpr (requires { typename Kernel::Matrix; }) {
    using Matrix = typename Kernel::Matrix;
    const int64_t whole_groups = begin + (end - begin) / Matrix::kTokens * Matrix::kTokens;
    for (int64_t t = tile; t < end_tile && begin < whole_groups; t += Matrix::kTiles) {
      const auto tiles = static_cast<int>(std::min<int64_t>(Matrix::kTiles, end_tile - t));
      Matrix::run(w, t, tiles, x, begin, whole_groups, out);
    }
    begin = whole_groups;
  }
  while (tile < end_tile) {
    const auto tiles =
        static_cast<int>(std::min<int64_t>(tiles_together<Kernel>(), end_tile - tile));
    for (int64_t token = begin; token < end;) {
      const int size = std::min(group_of(token, num_tokens).size, Kernel::kMaxTokens);
      run_group<Kernel>(w, tile, tiles, x, token, size, out);
      token += size;
    }
    tile += tiles;
  }
}

constexpr int kByte = Tile::kByteOffset;

#ifdef RILLM_MATRIX_UNIT
// When the library is loaded, and so before there are threads that multiply.
[[maybe_unused]] const bool has_matrix_unit = MatrixUnit::request();
#endif

}  // namespace

void matmul_tiles(const PackedMatrix& w, int64_t tile, int64_t num_tiles, const uint8_t* x,
                  int64_t begin, int64_t end, int64_t num_tokens, const MatmulOutput& out) {
  const auto run = [&]<class Kernel>() {
    run_groups<Kernel>(w, tile, tile + num_tiles, x, begin, end, num_tokens, out);
  };
  using enum Codes;
  switch (w.format.scales) {
    case Scales::G32:
      switch (w.format.codes) {
        case U4:
          return run.template operator()<QuantizedKernel<U4, Scales::G32, 8>>();
        case U4P1:
          return run.template operator()<QuantizedKernel<U4P1, Scales::G32, 16>>();
        case I8:
          return run.template operator()<QuantizedKernel<I8, Scales::G32, kByte>>();
        default:
          return run.template operator()<QuantizedKernel<Lut4, Scales::G32, kByte>>();
      }
    case Scales::G32Min:
      if (w.format.codes == U4) {
        return run.template operator()<QuantizedKernel<U4, Scales::G32Min, 0>>();
      }
      return run.template operator()<QuantizedKernel<U4P1, Scales::G32Min, 0>>();
    case Scales::K32Min:
      if (w.format.codes == U4) {
        return run.template operator()<QuantizedKernel<U4, Scales::K32Min, 0>>();
      }
      return run.template operator()<QuantizedKernel<U4P1, Scales::K32Min, 0>>();
    case Scales::K32:
      return run.template operator()<QuantizedKernel<Lut4, Scales::K32, kByte>>();
    case Scales::K16I8:
      return run.template operator()<QuantizedKernel<U4P2, Scales::K16I8, 32>>();
    case Scales::K16S6:
      return run.template operator()<QuantizedKernel<U2P1, Scales::K16S6, 4>>();
    case Scales::K16Min4:
      return run.template operator()<QuantizedKernel<U2, Scales::K16Min4, 0>>();
    case Scales::None:
      break;
  }
  switch (w.format.block_bytes == 4 ? 0 : w.format.name[0]) {
    case 0:
      return run.template operator()<FloatKernel<float, 4>>();
    case 'B':
      return run.template operator()<FloatKernel<BFloat16, 2>>();
    default:
      return run.template operator()<FloatKernel<Half, 2>>();
  }
}

}  // namespace rillm
