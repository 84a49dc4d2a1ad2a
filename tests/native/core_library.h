// One variant of the core, loaded by path and used through its ABI only; and small programs on it.
#pragma once

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "core.h"

#define CORE_FUNCTIONS(X)                                                                   \
  X(core_variant)                                                                           \
  X(core_last_error)                                                                        \
  X(core_team_create)                                                                       \
  X(core_load_blas)                                                                         \
  X(core_blas_info)                                                                         \
  X(core_format_at)                                                                         \
  X(core_dequantize)                                                                        \
  X(core_quantize) X(core_weight_create) X(core_weight_is_quantized) X(core_weight_destroy) \
      X(core_cache_create) X(core_cache_destroy) X(core_program_create) X(core_program_run) \
          X(core_program_output) X(core_program_destroy)

#define X(name) inline decltype(&::name) name##_;
CORE_FUNCTIONS(X)
#undef X
inline CoreTeam* team;

inline void must(int status) {
  if (status == CORE_OK) return;
  std::fprintf(stderr, "core: %s\n", core_last_error_());
  std::exit(2);
}

inline void load_core(const char* path, int num_threads) {
  void* library = dlopen(path, RTLD_NOW);
  if (library == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    std::exit(2);
  }
#define X(name) name##_ = reinterpret_cast<decltype(name##_)>(dlsym(library, #name));
  CORE_FUNCTIONS(X)
#undef X
  must(core_team_create_(num_threads, nullptr, &team));
}

// A tensor of GGUF blocks, with the floats that the blocks stand for.
struct Tensor {
  CoreFormat format;
  int64_t rows, cols;
  std::vector<uint8_t> blocks;
  std::vector<float> values;
};

inline CoreFormat find_format(const std::string& name) {
  CoreFormat format;
  for (int i = 0; core_format_at_(i, &format) == CORE_OK; ++i) {
    if (name == format.name) return format;
  }
  std::fprintf(stderr, "no format %s\n", name.c_str());
  std::exit(2);
}

inline Tensor make_tensor(const CoreFormat& format, int64_t rows, int64_t cols,
                          const std::vector<float>& values) {
  Tensor t{format, rows, cols, {}, std::vector<float>(values.size())};
  t.blocks.resize(values.size() / format.block_size * format.block_bytes);
  must(core_quantize_(team, format.ggml_type, values.data(), nullptr, t.blocks.data(),
                      t.blocks.size(), values.size(), cols));
  must(core_dequantize_(format.ggml_type, t.blocks.data(), t.blocks.size(), t.values.data(),
                        values.size()));
  return t;
}

inline CoreOp make_op(int kind, std::vector<int32_t> in, std::vector<int32_t> out,
                      std::vector<int32_t> weights) {
  CoreOp op{};
  op.kind = kind;
  for (int i = 0; i < 3; ++i) op.in[i] = i < static_cast<int>(in.size()) ? in[i] : -1;
  for (int i = 0; i < 2; ++i) op.out[i] = i < static_cast<int>(out.size()) ? out[i] : -1;
  for (int i = 0; i < 6; ++i) op.weight[i] = i < static_cast<int>(weights.size()) ? weights[i] : -1;
  return op;
}

// A program whose first op looks token ids up in `input` [rows, width], so that a batch of ids is a
// batch of its rows.
class Program {
 public:
  Program(const Tensor& input, int32_t max_tokens, CoreCache* cache = nullptr,
          int32_t blas_min_rows = 0)
      : cache_(cache), max_tokens_(max_tokens), blas_min_rows_(blas_min_rows) {
    add_buffer(CORE_BUFFER_F32, input.cols);
    add_op(make_op(CORE_EMBED, {}, {0}, {add_weight(CORE_TABLE, input)}));
  }
  Program(const Program&) = delete;
  ~Program() {
    if (program_ != nullptr) core_program_destroy_(program_);
    for (CoreWeight* weight : weights_) core_weight_destroy_(weight);
  }
  int32_t add_buffer(int kind, int64_t width) {
    const auto id = static_cast<int32_t>(buffers_.size());
    buffers_.push_back({kind, CORE_ROWS_TOKENS, static_cast<int32_t>(width), id});
    return id;
  }
  int32_t add_weight(int kind, const Tensor& t) {
    const CoreTensor raw{t.blocks.data(), t.blocks.size(), t.rows, t.cols, t.format.ggml_type};
    weights_.push_back(nullptr);
    must(core_weight_create_(team, kind, &raw, &weights_.back()));
    return static_cast<int32_t>(weights_.size()) - 1;
  }
  bool is_quantized(int32_t weight) const {
    return core_weight_is_quantized_(weights_[weight]) != 0;
  }
  void add_op(const CoreOp& op) { ops_.push_back(op); }

  // Rows `ids` of the input at positions first_position, first_position + 1, .. of one sequence.
  std::vector<float> run(const std::vector<int32_t>& ids, int32_t output,
                         int32_t first_position = 0) {
    if (program_ == nullptr) {
      const CoreProgramConfig config{ops_.data(),
                                     buffers_.data(),
                                     weights_.data(),
                                     static_cast<int32_t>(ops_.size()),
                                     static_cast<int32_t>(buffers_.size()),
                                     static_cast<int32_t>(weights_.size()),
                                     max_tokens_,
                                     1,
                                     output,
                                     blas_min_rows_};
      must(core_program_create_(team, cache_, &config, &program_));
    }
    const auto n = static_cast<int32_t>(ids.size());
    std::vector<int32_t> positions(n), blocks((first_position + n + 15) / 16);
    for (int32_t i = 0; i < n; ++i) positions[i] = first_position + i;
    // Blocks in descending order: the cache is paged.
    const auto num_blocks = static_cast<int32_t>(blocks.size());
    for (int32_t i = 0; i < num_blocks; ++i) blocks[i] = 63 - i;
    std::vector<int32_t> slots(n);
    for (int32_t i = 0; i < n; ++i) slots[i] = blocks[positions[i] / 16] * 16 + positions[i] % 16;
    const int32_t starts[2] = {0, n}, context = first_position + n;
    const CoreBatch batch{ids.data(),
                          positions.data(),
                          slots.data(),
                          starts,
                          &context,
                          blocks.data(),
                          nullptr,
                          n,
                          1,
                          num_blocks,
                          0};
    must(core_program_run_(program_, &batch));
    const float* rows = core_program_output_(program_);
    return {rows, rows + int64_t{n} * buffers_[output].width};
  }

 private:
  CoreCache* cache_;
  int32_t max_tokens_, blas_min_rows_;
  std::vector<CoreOp> ops_;
  std::vector<CoreBuffer> buffers_;
  std::vector<CoreWeight*> weights_;
  CoreProgram* program_ = nullptr;
};
