// The exported functions: argument checks, and no exception past this file.
#include <chrono>
#include <cstring>

#include "core.h"
#include "error.h"
#include "formats/format.h"
#include "isa/simd.h"
#include "kv_cache.h"
#include "layouts/layout.h"
#include "ops/blas.h"
#include "ops/peak.h"
#include "program.h"
#include "thread_team.h"
#include "weight.h"

using namespace rillm;

void core_abi(CoreAbi* out) {
  *out = {CORE_ABI_VERSION,          sizeof(CoreFormat), sizeof(CoreTensor),
          sizeof(CoreCacheConfig),   sizeof(CoreBuffer), sizeof(CoreOp),
          sizeof(CoreProgramConfig), sizeof(CoreBatch),  sizeof(CoreSampling),
          sizeof(CoreProb)};
}

const char* core_variant(void) { return RILLM_VARIANT; }
const char* core_last_error(void) { return last_error(); }

int core_team_create(int32_t num_threads, const int32_t* cpus, CoreTeam** out) {
  return guarded([&] {
    if (num_threads < 1 || num_threads > 1024) {
      return fail(CORE_INVALID, "%d threads: 1 to 1024", num_threads);
    }
    *out = new CoreTeam{ThreadTeam(num_threads, cpus)};
    return int{CORE_OK};
  });
}

void core_team_destroy(CoreTeam* team) { delete team; }

int core_read_bandwidth(CoreTeam* team, const void* data, uint64_t size, int32_t repeats,
                        double* bytes_per_second) {
  return guarded([&] {
    constexpr int64_t kChunk = 1 << 16;
    const int64_t chunks = static_cast<int64_t>(size) / kChunk;
    if (chunks < 1 || repeats < 1) return fail(CORE_INVALID, "too little memory to read");
    std::vector<float> sums(static_cast<size_t>(team->threads.num_threads()) * 16);
    double best = 0.0;
    for (int32_t repeat = 0; repeat < repeats; ++repeat) {
      const auto start = std::chrono::steady_clock::now();
      team->threads.parallel([&](int thread) {
        Simd::F sum[4] = {Simd::zero(), Simd::zero(), Simd::zero(), Simd::zero()};
        team->threads.for_chunks(thread, chunks, [&](int64_t chunk) {
          const auto* from = static_cast<const float*>(data) + chunk * (kChunk / 4);
          for (int64_t i = 0; i < kChunk / 4; i += 4 * Simd::kLanes) {
            for (int k = 0; k < 4; ++k) {
              sum[k] = Simd::add(sum[k], Simd::load(from + i + k * Simd::kLanes));
            }
          }
        });
        // By index: GCC cannot bind a reference to an array of vectors of fixed length.
        for (int k = 0; k < 4; ++k) sums[thread * 16] += Simd::reduce_add(sum[k]);
      });
      const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
      const double rate = static_cast<double>(chunks * kChunk) / elapsed.count();
      if (rate > best) best = rate;
    }
    *bytes_per_second = best;
    return int{CORE_OK};
  });
}

int core_load_blas(const char* path) {
  return guarded([&] { return load_blas(path); });
}

const char* core_blas_info(void) { return blas_info(); }

int core_multiply_peak(CoreTeam* team, double* int8_rate, double* float_rate) {
  return guarded([&] {
    const MultiplyPeak peak = measure_multiply_peak(team->threads);
    *int8_rate = peak.int8;
    *float_rate = peak.float32;
    return int{CORE_OK};
  });
}

int core_format_at(int32_t index, CoreFormat* out) {
  const auto formats = all_formats();
  if (index < 0 || index >= static_cast<int32_t>(formats.size())) {
    return fail(CORE_INVALID, "format index %d", index);
  }
  const Format& format = formats[index];
  *out = {format.ggml_type, format.block_size, format.block_bytes, format.quantize != nullptr, {}};
  std::strncpy(out->name, format.name, sizeof out->name - 1);
  return CORE_OK;
}

namespace {

// The format, or null with the reason, of num_weights weights in num_bytes bytes.
const Format* checked_format(int32_t ggml_type, uint64_t num_weights, uint64_t num_bytes) {
  const Format* format = find_format(ggml_type);
  if (format == nullptr) {
    fail(CORE_UNSUPPORTED, "ggml type %d is not a weight format that rillm runs", ggml_type);
    return nullptr;
  }
  const auto block = static_cast<uint64_t>(format->block_size);
  if (num_weights % block != 0 ||
      num_bytes != num_weights / block * static_cast<uint64_t>(format->block_bytes)) {
    fail(CORE_INVALID, "%llu %s weights do not take %llu bytes",
         static_cast<unsigned long long>(num_weights), format->name,
         static_cast<unsigned long long>(num_bytes));
    return nullptr;
  }
  return format;
}

}  // namespace

int core_dequantize(int32_t ggml_type, const void* blocks, uint64_t num_bytes, float* out,
                    uint64_t num_weights) {
  return guarded([&] {
    const Format* format = checked_format(ggml_type, num_weights, num_bytes);
    if (format == nullptr) return int{CORE_INVALID};
    format->dequantize(static_cast<const uint8_t*>(blocks), out, static_cast<int64_t>(num_weights));
    return int{CORE_OK};
  });
}

int core_quantize(CoreTeam* team, int32_t ggml_type, const float* weights, const float* importance,
                  void* out, uint64_t num_bytes, uint64_t num_weights, uint64_t row_length) {
  return guarded([&] {
    const Format* format = checked_format(ggml_type, num_weights, num_bytes);
    if (format == nullptr) return int{CORE_INVALID};
    if (format->quantize == nullptr) {
      return fail(CORE_UNSUPPORTED, "rillm does not write %s", format->name);
    }
    const auto block = static_cast<uint64_t>(format->block_size);
    if (row_length == 0 || row_length % block != 0 || num_weights % row_length != 0) {
      return fail(CORE_INVALID, "rows of %llu weights are not whole %s blocks of %d",
                  static_cast<unsigned long long>(row_length), format->name, format->block_size);
    }
    const auto length = static_cast<int64_t>(row_length);
    const int64_t row_bytes = length / format->block_size * int64_t{format->block_bytes};
    const auto rows = static_cast<int64_t>(num_weights / row_length);
    auto* to = static_cast<uint8_t*>(out);
    if (team == nullptr) {
      format->quantize(weights, importance, to, static_cast<int64_t>(num_weights), length);
      return int{CORE_OK};
    }
    team->threads.parallel([&](int thread) {
      team->threads.for_chunks(thread, rows, [&](int64_t row) {
        format->quantize(weights + row * length, importance, to + row * row_bytes, length, length);
      });
    });
    return int{CORE_OK};
  });
}

int core_weight_create(CoreTeam* team, int32_t kind, const CoreTensor* tensor, CoreWeight** out) {
  return guarded([&] { return create_weight(team, kind, tensor, out); });
}

uint64_t core_weight_bytes(const CoreWeight* weight) {
  return weight->matrix ? weight->matrix->num_bytes() : weight->values.size() * sizeof(float);
}

int32_t core_weight_is_quantized(const CoreWeight* weight) {
  return weight->matrix && weight->matrix->is_quantized();
}

void core_weight_destroy(CoreWeight* weight) { delete weight; }

int32_t core_tile_rows(const char* variant) {
  const Layout* layout = find_layout(variant);
  return layout == nullptr ? 0 : layout->rows;
}

int core_pack(CoreTeam* team, const char* variant, const CoreTensor* tensor, void* out,
              uint64_t num_bytes) {
  return guarded(
      [&] { return pack_for(team, variant, *tensor, static_cast<uint8_t*>(out), num_bytes); });
}

int core_layout_id(const char* variant, int32_t ggml_type, uint64_t* out) {
  return guarded([&] {
    const Layout* layout = find_layout(variant);
    const Format* format = find_format(ggml_type);
    if (layout == nullptr || format == nullptr) {
      return fail(CORE_UNSUPPORTED, "no layout of ggml type %d for %s", ggml_type, variant);
    }
    *out = layout_id(*layout, *format);
    return int{CORE_OK};
  });
}

int core_cache_create(const CoreCacheConfig* config, CoreCache** out) {
  return guarded([&] {
    const CoreCacheConfig& c = *config;
    constexpr int32_t kF16 = 1, kQ8_0 = 8;
    if (c.num_layers < 1 || c.num_kv_heads < 1 || c.num_blocks < 1 || c.head_dim < 32 ||
        c.head_dim % 32 != 0 || c.head_dim > 1024 || c.block_size < 16 || c.block_size % 16 != 0 ||
        c.num_kv_heads > (1 << 12) || c.block_size > (1 << 16)) {
      return fail(CORE_INVALID,
                  "KV cache: %d layers, %d heads of %d (a multiple of 32), %d blocks of %d (of 16)",
                  c.num_layers, c.num_kv_heads, c.head_dim, c.num_blocks, c.block_size);
    }
    if (c.ggml_type != kF16 && c.ggml_type != kQ8_0) {
      return fail(CORE_UNSUPPORTED, "KV cache: type %d is neither f16 nor q8_0", c.ggml_type);
    }
    *out = new CoreCache(c);
    return int{CORE_OK};
  });
}

uint64_t core_cache_block_bytes(const CoreCache* cache) {
  return static_cast<uint64_t>(cache->block_bytes);
}

namespace {

int check_block(const CoreCache* cache, int32_t block, uint64_t num_bytes) {
  if (block >= 0 && block < cache->config.num_blocks &&
      num_bytes == core_cache_block_bytes(cache)) {
    return CORE_OK;
  }
  return fail(CORE_INVALID, "cache block %d, %llu bytes", block,
              static_cast<unsigned long long>(num_bytes));
}

}  // namespace

int core_cache_read(const CoreCache* cache, int32_t block, void* out, uint64_t num_bytes) {
  const int code = check_block(cache, block, num_bytes);
  if (code == CORE_OK) std::memcpy(out, cache->block(block), num_bytes);
  return code;
}

int core_cache_write(CoreCache* cache, int32_t block, const void* data, uint64_t num_bytes) {
  const int code = check_block(cache, block, num_bytes);
  if (code == CORE_OK) std::memcpy(cache->block(block), data, num_bytes);
  return code;
}

void core_cache_destroy(CoreCache* cache) { delete cache; }

int core_program_create(CoreTeam* team, CoreCache* cache, const CoreProgramConfig* config,
                        CoreProgram** out) {
  return guarded([&] {
    auto program = std::make_unique<CoreProgram>(team, cache, *config);
    if (const int status = program->validate(); status != CORE_OK) return status;
    program->allocate();
    *out = program.release();
    return int{CORE_OK};
  });
}

int core_program_run(CoreProgram* program, const CoreBatch* batch) {
  return guarded([&] { return program->run(*batch); });
}

const float* core_program_output(const CoreProgram* program) { return program->output(); }
int core_program_add_rows(const CoreProgram* program, int32_t buffer, int32_t first, int32_t count,
                          float* sum) {
  return program->add_rows(buffer, first, count, sum);
}
uint64_t core_program_bytes(const CoreProgram* program) { return program->num_bytes(); }
void core_program_destroy(CoreProgram* program) { delete program; }
