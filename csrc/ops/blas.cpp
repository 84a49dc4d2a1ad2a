#include "ops/blas.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

#include "error.h"

namespace rillm {
namespace {

// cblas.h of a build with 32-bit integers (LP64); the enums are ints.
using Sgemm = void (*)(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                       const float* a, int lda, const float* b, int ldb, float beta, float* c,
                       int ldc);
constexpr int kColumnMajor = 102, kNoTranspose = 111;
constexpr int32_t kBF16 = 30;  // its ggml type

struct Library {
  Sgemm sgemm = nullptr;
  void (*set_num_threads)(int) = nullptr;
  std::string info, path;
} library;
std::mutex loading;

// OpenBLAS starts its threads when it is loaded, unless this says that there is one.
class OneThreadVariable {
 public:
  OneThreadVariable() {
    if (const char* old = std::getenv(kName)) old_ = old, had_ = true;
    setenv(kName, "1", 1);
  }
  ~OneThreadVariable() {
    if (had_) {
      setenv(kName, old_.c_str(), 1);
    } else {
      unsetenv(kName);
    }
  }

 private:
  static constexpr const char* kName = "OPENBLAS_NUM_THREADS";
  std::string old_;
  bool had_ = false;
};

template <class Function>
bool find(void* handle, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(handle, name));
  return function != nullptr;
}

int load(const char* path) {
  void* handle = nullptr;
  {
    const OneThreadVariable one;
    handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  }
  if (handle == nullptr) return fail(CORE_INVALID, "%s", dlerror());
  Library found;
  char* (*config)() = nullptr;
  char* (*core)() = nullptr;
  int (*parallel)() = nullptr;
  int status = CORE_OK;
  if (!find(handle, "cblas_sgemm", found.sgemm) ||
      !find(handle, "openblas_set_num_threads", found.set_num_threads) ||
      !find(handle, "openblas_get_config", config) ||
      !find(handle, "openblas_get_corename", core) ||
      !find(handle, "openblas_get_parallel", parallel)) {
    status = fail(CORE_UNSUPPORTED, "%s is no OpenBLAS with the C interface", path);
  } else if (std::strstr(config(), "USE64BITINT") != nullptr) {
    status =
        fail(CORE_UNSUPPORTED, "%s has 64-bit integers; a build with 32-bit ones is needed", path);
  } else if (parallel() == 0) {  // it may lack the locks that several callers at once need
    status = fail(CORE_UNSUPPORTED, "%s is a build for one thread; take the pthread build", path);
  }
  if (status != CORE_OK) {
    dlclose(handle);
    return status;
  }
  std::string name = config();  // "OpenBLAS 0.3.21 DYNAMIC_ARCH ..."
  const size_t space = name.find(' ', name.find(' ') + 1);
  found.info = name.substr(0, space) + " " + core();
  found.path = path;
  library = found;
  return CORE_OK;
}

using LoadWeights = Tile::F (*)(const uint8_t*);  // one column of a tile
Tile::F load_f32(const uint8_t* p) { return Tile::load(reinterpret_cast<const float*>(p)); }
Tile::F load_f16(const uint8_t* p) { return Tile::load_half(reinterpret_cast<const uint16_t*>(p)); }
Tile::F load_bf16(const uint8_t* p) {
  return Tile::load_bfloat16(reinterpret_cast<const uint16_t*>(p));
}

// Columns [first, last) of tiles [begin, end) as a column-major matrix of `rows` rows. A few
// columns of all tiles at a time: the tiles' bytes and the panel's columns then stay in the first
// cache.
template <LoadWeights load, int num_bytes>
void convert(const PackedMatrix& w, int64_t begin, int64_t end, int64_t first, int64_t last,
             int64_t rows, float* panel) {
  constexpr int64_t kStep = 16;
  constexpr int64_t kColumnBytes = num_bytes * Tile::kRows;
  for (int64_t k = first; k < last; k += kStep) {
    const int64_t stop = std::min(k + kStep, last);
    for (int64_t tile = begin; tile < end; ++tile) {
      const uint8_t* from = w.tile(tile) + k * kColumnBytes;
      float* to = panel + (k - first) * rows + (tile - begin) * Tile::kRows;
      for (int64_t column = k; column < stop; ++column, from += kColumnBytes, to += rows) {
        Tile::store(to, load(from));
      }
    }
  }
}

}  // namespace

int load_blas(const char* path) {
  const std::lock_guard<std::mutex> lock(loading);
  if (library.sgemm == nullptr) return load(path);
  if (library.path == path) return CORE_OK;
  return fail(CORE_INVALID, "%s is loaded already; a process has only one OpenBLAS",
              library.path.c_str());
}

bool has_blas() { return library.sgemm != nullptr; }
const char* blas_info() { return library.info.c_str(); }

void blas_tiles(const PackedMatrix& w, int64_t begin, int64_t end, const float* x,
                int64_t num_tokens, const MatmulOutput& out, float* scratch) {
  // In OpenMP builds the number of threads belongs to the calling thread.
  thread_local bool is_single = false;
  if (!is_single) library.set_num_threads(1);
  is_single = true;

  const int64_t row = begin * Tile::kRows, panel_rows = (end - begin) * Tile::kRows;
  const int64_t rows = std::min(panel_rows, w.rows - row);  // the last tile may not be full
  const bool adds = out.bias != nullptr || out.residual != nullptr;
  if (adds) {  // sgemm adds its product to them
    for (int64_t token = 0; token < num_tokens; ++token) {
      float* y = out.y + token * out.stride + row;
      const float* residual = out.residual + (out.residual ? token * out.stride + row : 0);
      for (int64_t i = 0; i < rows; ++i) {
        y[i] = (out.residual ? residual[i] : 0.0f) + (out.bias ? out.bias[row + i] : 0.0f);
      }
    }
  }
  for (int64_t k = 0; k < w.cols; k += kPanelCols) {
    const int64_t last = std::min(k + kPanelCols, w.cols);
    const auto convert_panel = w.format.block_bytes == 4     ? convert<load_f32, 4>
                               : w.format.ggml_type == kBF16 ? convert<load_bf16, 2>
                                                             : convert<load_f16, 2>;
    convert_panel(w, begin, end, k, last, panel_rows, scratch);
    const auto m = static_cast<int>(rows), n = static_cast<int>(num_tokens);
    library.sgemm(kColumnMajor, kNoTranspose, kNoTranspose, m, n, static_cast<int>(last - k), 1.0f,
                  scratch, static_cast<int>(panel_rows), x + k, static_cast<int>(w.cols),
                  adds || k > 0 ? 1.0f : 0.0f, out.y + row, static_cast<int>(out.stride));
  }
}

}  // namespace rillm
