// The whole C ABI of the core: plain old data, opaque handles, return codes.
//
// One shared library per ISA variant exports these functions; exactly one is loaded in a process.
// src/rillm/core/abi.py mirrors this file and checks the version and every struct size on load.
// Nothing here prints, aborts or throws: a function that fails returns a CoreStatus and leaves a
// one-line reason for core_last_error() (per thread). Sizes are in bytes unless named otherwise.
#pragma once

#include <stdint.h>

#define CORE_ABI_VERSION 3
#define CORE_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

enum CoreStatus { CORE_OK = 0, CORE_INVALID = 1, CORE_NO_MEMORY = 2, CORE_UNSUPPORTED = 3 };

typedef struct CoreTeam CoreTeam;        // threads that run programs
typedef struct CoreWeight CoreWeight;    // one tensor, in the form its op wants
typedef struct CoreCache CoreCache;      // paged KV cache of all layers
typedef struct CoreProgram CoreProgram;  // a validated op list with its buffers

typedef struct {
  uint32_t version, sizeof_format, sizeof_tensor, sizeof_cache, sizeof_buffer, sizeof_op;
  uint32_t sizeof_program, sizeof_batch, sizeof_sampling, sizeof_prob;
} CoreAbi;

CORE_API void core_abi(CoreAbi* out);
CORE_API const char* core_variant(void);     // e.g. "x86_avx512", the row of variants.cmake
CORE_API const char* core_last_error(void);  // why the last call on this thread failed

// ---- threads -------------------------------------------------------------------------------
// cpus: [num_threads] CPU numbers to pin to, or null for no pinning. The caller is thread 0.
CORE_API int core_team_create(int32_t num_threads, const int32_t* cpus, CoreTeam** out);
CORE_API void core_team_destroy(CoreTeam* team);
// Sums `size` bytes `repeats` times on all threads; bytes/s of the best pass (decode's limit).
CORE_API int core_read_bandwidth(CoreTeam* team, const void* data, uint64_t size, int32_t repeats,
                                 double* bytes_per_second);
// Multiply-accumulates/s of all threads on values in registers (prefill's limit): int8, float32.
CORE_API int core_multiply_peak(CoreTeam* team, double* int8_rate, double* float_rate);

// ---- OpenBLAS ------------------------------------------------------------------------------
// Loads the OpenBLAS at `path` for programs that ask for it (CoreProgramConfig); once a process.
CORE_API int core_load_blas(const char* path);
CORE_API const char* core_blas_info(void);  // e.g. "OpenBLAS 0.3.21 Zen"; "" where none is loaded

// ---- weight formats ------------------------------------------------------------------------
typedef struct {
  int32_t ggml_type, block_size, block_bytes, can_quantize;
  char name[16];
} CoreFormat;

CORE_API int core_format_at(int32_t index, CoreFormat* out);  // CORE_INVALID past the end
CORE_API int core_dequantize(int32_t ggml_type, const void* blocks, uint64_t num_bytes, float* out,
                             uint64_t num_weights);
// importance: [row_length] weights >= 0, or null. Rows are shared out over the team (may be null).
CORE_API int core_quantize(CoreTeam* team, int32_t ggml_type, const float* weights,
                           const float* importance, void* out, uint64_t num_bytes,
                           uint64_t num_weights, uint64_t row_length);

// ---- weights -------------------------------------------------------------------------------
typedef struct {
  const void* data;  // GGUF blocks, row after row
  uint64_t num_bytes;
  int64_t rows, cols;
  int32_t ggml_type;
} CoreTensor;

enum CoreWeightKind {
  CORE_MATRIX = 0,  // repacked into the variant's row tiles, for linear ops; data can be released
  CORE_TABLE = 1,   // rows looked up one at a time: keeps pointing at data, which must stay mapped
  CORE_VECTOR = 2,  // copied as float32 (norms, biases, frequencies)
  CORE_PACKED = 3,  // a matrix in row tiles already (core_pack): data must stay mapped
};

CORE_API int core_weight_create(CoreTeam* team, int32_t kind, const CoreTensor* tensor,
                                CoreWeight** out);
CORE_API uint64_t core_weight_bytes(const CoreWeight* weight);  // its memory, mapped or own
// 1 where linear ops on this matrix read 8-bit activations (CORE_BUFFER_Q8), 0 where float32.
CORE_API int32_t core_weight_is_quantized(const CoreWeight* weight);
CORE_API void core_weight_destroy(CoreWeight* weight);

// Rows of the tiles of a variant, whichever processor it is for; 0 for an unknown name.
CORE_API int32_t core_tile_rows(const char* variant);
// Packs a matrix for a variant. num_bytes: those of as many rows as whole tiles have.
CORE_API int core_pack(CoreTeam* team, const char* variant, const CoreTensor* tensor, void* out,
                       uint64_t num_bytes);
// A number for how a variant packs a format: another one means other bytes.
CORE_API int core_layout_id(const char* variant, int32_t ggml_type, uint64_t* out);

// ---- KV cache ------------------------------------------------------------------------------
typedef struct {
  int32_t num_layers, num_kv_heads, head_dim, block_size, num_blocks;
  int32_t ggml_type;  // F16 or Q8_0
} CoreCacheConfig;

CORE_API int core_cache_create(const CoreCacheConfig* config, CoreCache** out);
CORE_API uint64_t core_cache_block_bytes(const CoreCache* cache);  // of one block, all layers
CORE_API int core_cache_read(const CoreCache* cache, int32_t block, void* out, uint64_t num_bytes);
CORE_API int core_cache_write(CoreCache* cache, int32_t block, const void* data, uint64_t size);
CORE_API void core_cache_destroy(CoreCache* cache);

// ---- programs ------------------------------------------------------------------------------
enum CoreBufferKind {
  CORE_BUFFER_F32 = 0,  // width floats a row
  CORE_BUFFER_Q8 = 1,   // width 8-bit activations a row, with their scales and sums
};
enum CoreRows {
  CORE_ROWS_TOKENS = 0,  // one for each token of the batch
  CORE_ROWS_LOGITS = 1,  // one for each token whose output is wanted
  CORE_ROWS_ONE = 2,     // one for the whole batch
};

typedef struct {
  int32_t kind, rows, width;
  int32_t slot;  // buffers with the same slot share memory (their lifetimes do not overlap)
} CoreBuffer;

// in/out are buffer ids, weight are ids in CoreProgramConfig.weights; -1 = absent.
enum CoreOpKind {
  CORE_EMBED = 0,    // out0 = table weight0[token_ids]
  CORE_RMSNORM = 1,  // out0 = [in1 +] in0 / rms(in0) * weight0; out1 = Q8(out0); f0 = eps
  CORE_LINEAR = 2,   // out0 = concat_i(x weight_i^T + weight_{3+i}) [+ in1], i < 3; x is in0 (Q8)
                     // for quantised weights and in2 (F32) for float ones
  CORE_ROPE_TABLE = 3,  // out0 [2 * n] = cos, sin of position * weight0 [n]; f0 = magnitude scale
  CORE_ROPE = 4,        // rotates in0 = out0 by table in1: i0 first column, i1 heads, i2 head_dim,
                        // i3 rotary dims, i4 1 = pairs (2i, 2i+1), 0 = pairs (i, i + rotary/2)
  CORE_ATTENTION = 5,   // in0 = q|k|v columns; stores k and v in the cache, then out0 = causal
                        // attention: i0 layer, i1 heads, f0 = scale; kv shape is the cache's
  CORE_SWIGLU = 6,      // out0 [n] and/or out1 Q8 [n] = silu(in0[:n]) * in0[n:]
  CORE_ADD = 7,         // out0 = in0 + in1
  CORE_QUANTIZE = 8,    // out1 = Q8(in0)
  CORE_GATHER = 9,      // out0 (logits rows) = in0 (token rows) [logits_rows]
  CORE_SUM_SQUARES = 10,  // out0 (one row) [i0 + c] = sum over the rows of in0[c]^2
};

typedef struct {
  int32_t kind;
  int32_t in[3], out[2];
  int32_t weight[6];
  int32_t i[6];
  float f[2];
} CoreOp;

typedef struct {
  const CoreOp* ops;
  const CoreBuffer* buffers;
  CoreWeight* const* weights;
  int32_t num_ops, num_buffers, num_weights;
  int32_t max_tokens, max_logits;  // rows that one run may have
  int32_t output;                  // buffer that core_program_output returns
  // Linear ops on float weights with at least so many rows use OpenBLAS; 0 = never. A result may
  // then differ in its last bits with the number of rows (batched, chunked).
  int32_t blas_min_rows;
} CoreProgramConfig;

// One ragged batch: prefill chunks and decode tokens of many sequences together.
typedef struct {
  const int32_t* token_ids;     // [num_tokens]
  const int32_t* positions;     // [num_tokens] position in the sequence
  const int32_t* slot_mapping;  // [num_tokens] block * block_size + offset where k, v go
  const int32_t* cu_seqlens_q;  // [num_seqs + 1] where each sequence's tokens start
  const int32_t* context_lens;  // [num_seqs] tokens in the cache after this step
  const int32_t* block_tables;  // [num_seqs, max_blocks]
  const int32_t* logits_rows;   // [num_logits] token rows whose output is wanted
  int32_t num_tokens, num_seqs, max_blocks, num_logits;
} CoreBatch;

// team, cache and weights must outlive the program; cache may be null where no op needs one.
CORE_API int core_program_create(CoreTeam* team, CoreCache* cache, const CoreProgramConfig* config,
                                 CoreProgram** out);
CORE_API int core_program_run(CoreProgram* program, const CoreBatch* batch);
CORE_API const float* core_program_output(const CoreProgram* program);  // [num_logits, width]
// sum [width of the buffer] += `count` rows of a float32 buffer as the last run left them; count 1
// reads a row. Only buffers whose slot no later op writes to still hold what they were given.
CORE_API int core_program_add_rows(const CoreProgram* program, int32_t buffer, int32_t first,
                                   int32_t count, float* sum);
CORE_API uint64_t core_program_bytes(const CoreProgram* program);  // of its buffers
CORE_API void core_program_destroy(CoreProgram* program);

// ---- sampling ------------------------------------------------------------------------------
enum CoreSampler {
  CORE_PENALTIES = 1,
  CORE_DRY,
  CORE_TOP_N_SIGMA,
  CORE_TOP_K,
  CORE_TYPICAL,
  CORE_TOP_P,
  CORE_MIN_P,
  CORE_XTC,
  CORE_TEMPERATURE
};

typedef struct {
  int32_t id;
  float logit, prob;
} CoreProb;

// One sequence's draw. Names and defaults are those of llama-server's /completion.
typedef struct {
  float* logits;                // [vocab_size], read only
  const int32_t* history;       // [num_history] prompt and answer so far, oldest first
  const uint32_t* mask;         // bit set = token allowed (grammar), or null
  const CoreProb* bias;         // [num_bias] logit added to id (-inf = never)
  const int32_t* dry_breakers;  // [num_dry_breakers] ascending token ids that end a DRY match
  CoreProb* top;                // out [num_top] likeliest tokens; id -1 past the last
  CoreProb chosen;              // out; id -1 where nothing could be drawn
  uint64_t seed, counter;       // the draw depends on these two only
  int32_t vocab_size, num_history, num_bias, num_dry_breakers, num_top, top_after_sampling;
  int32_t samplers[12], num_samplers;  // CoreSampler, in order
  int32_t top_k, min_keep, repeat_last_n, dry_allowed_length, dry_penalty_last_n, mirostat;
  float temperature, dynatemp_range, dynatemp_exponent, top_p, min_p, typical_p, top_n_sigma;
  float xtc_probability, xtc_threshold, repeat_penalty, presence_penalty, frequency_penalty;
  float dry_multiplier, dry_base, mirostat_tau, mirostat_eta, mirostat_mu;  // mu: in and out
} CoreSampling;

// Draws for every request; one that fails does not stop the others, and its reason is returned.
CORE_API int core_sample(CoreTeam* team, CoreSampling* requests, int32_t num_requests);

#ifdef __cplusplus
}
#endif
