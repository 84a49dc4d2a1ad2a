#include "program.h"

#include <algorithm>
#include <cstring>

#include "error.h"
#include "ops/activations.h"
#include "ops/blas.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"

using namespace rillm;

namespace {

// Tokens whose activations a chunk of weights is multiplied with before the next tokens are
// fetched: 64 rows of 4096 columns are 300 KiB, which stays in a second-level cache.
constexpr int64_t kTokenBlock = 64;
static_assert(kTokenBlock % Tile::kMaxTokens == 0);
// Tiles that a thread keeps in its cache while it goes over the token blocks of a prefill.
constexpr int64_t kPrefillTiles = 8;
// The same for a few tokens.
#if defined(RILLM_BLOCK_TILES) || defined(RILLM_MATRIX_UNIT)
constexpr int64_t kBatchTiles = 2;  // which block_, pair_ and matrix_kernel.h multiply together
#else
constexpr int64_t kBatchTiles = 1;
#endif
// Columns that one thread sums the squares of: a multiple of 32, enough for whole cache lines.
constexpr int64_t kSumColumns = 128;

}  // namespace

CoreProgram::CoreProgram(CoreTeam* team, CoreCache* cache, const CoreProgramConfig& config)
    : team_(team),
      cache_(cache),
      max_tokens_(config.max_tokens),
      max_logits_(config.max_logits),
      output_(config.output),
      blas_min_rows_(config.blas_min_rows),
      ops_(config.ops, config.ops + config.num_ops),
      weights_(config.weights, config.weights + config.num_weights) {
  for (int32_t i = 0; i < config.num_buffers; ++i) {
    const CoreBuffer& shape = config.buffers[i];
    const int64_t row_bytes =
        shape.kind == CORE_BUFFER_Q8 ? q8_row_bytes(shape.width) : int64_t{4} * shape.width;
    buffers_.push_back({shape, row_bytes, nullptr});
  }
}

void CoreProgram::allocate() {
  std::vector<uint64_t> sizes(buffers_.size());
  for (const Buffer& buffer : buffers_) {
    const int64_t rows = max_rows(buffer.shape.rows);
    uint64_t& size = sizes[buffer.shape.slot];
    size = std::max(size, static_cast<uint64_t>(rows * buffer.row_bytes));
  }
  for (const uint64_t size : sizes) slots_.emplace_back(size);
  for (Buffer& buffer : buffers_) buffer.data = slots_[buffer.shape.slot].data();
  for (const Buffer& buffer : buffers_) {
    if (buffer.shape.kind != CORE_BUFFER_Q8) continue;
    // Whole cache lines, so that threads do not share one.
    const int64_t floats = (buffer.shape.width + 15) / 16 * 16;
    scratch_floats_ = std::max(scratch_floats_, floats);
  }
  scratch_ = Memory(static_cast<uint64_t>(4 * scratch_floats_ * team_->threads.num_threads()));
  if (blas_min_rows_ > 0) {
    panels_ = Memory(static_cast<uint64_t>(4 * kPanelFloats * team_->threads.num_threads()));
  }
  if (num_heads_ > 0) {
    const AttentionShape shape{num_heads_, cache_->config.num_kv_heads, cache_->config.head_dim};
    attention_.emplace(shape, team_->threads.num_threads(), max_tokens_);
  }
}

uint64_t CoreProgram::num_bytes() const {
  uint64_t sum = panels_.size() + (attention_ ? attention_->num_bytes() : 0);
  for (const Memory& slot : slots_) sum += slot.size();
  return sum;
}

int CoreProgram::run(const CoreBatch& batch) {
  if (const int status = validate_batch(batch); status != CORE_OK) return status;
  if (attention_) attention_->prepare(batch);
  team_->threads.parallel([&](int thread) {
    for (const CoreOp& op : ops_) run_op(op, batch, thread);
  });
  return CORE_OK;
}

int CoreProgram::add_rows(int32_t buffer, int32_t first, int32_t count, float* sum) const {
  const bool known = buffer >= 0 && buffer < static_cast<int32_t>(buffers_.size()) &&
                     buffers_[buffer].shape.kind == CORE_BUFFER_F32;
  if (!known) return fail(CORE_INVALID, "buffer %d", buffer);
  const CoreBuffer& shape = buffers_[buffer].shape;
  const int32_t rows = max_rows(shape.rows);
  if (first < 0 || count < 0 || first > rows - count) {
    return fail(CORE_INVALID, "rows %d + %d of a buffer of %d", first, count, rows);
  }
  for (int32_t i = first; i < first + count; ++i) {
    const float* from = f32(buffer, i);
    for (int32_t column = 0; column < shape.width; ++column) sum[column] += from[column];
  }
  return CORE_OK;
}

void CoreProgram::run_op(const CoreOp& op, const CoreBatch& batch, int thread) {
  ThreadTeam& team = team_->threads;
  const int32_t out = op.out[0] >= 0 ? op.out[0] : op.out[1];
  const int64_t rows = num_rows(buffers_[out], batch);
  const int64_t width = buffers_[out].shape.width;
  const auto each_row = [&](auto&& body) { team.for_chunks(thread, rows, body); };
  const auto* values = op.weight[0] >= 0 ? weights_[op.weight[0]]->values.data() : nullptr;
  switch (op.kind) {
    case CORE_EMBED: {
      const CoreWeight& table = *weights_[op.weight[0]];
      const int64_t row_bytes =
          table.cols / table.format->block_size * int64_t{table.format->block_bytes};
      each_row([&](int64_t i) {
        table.format->dequantize(table.table + batch.token_ids[i] * row_bytes, f32(out, i), width);
      });
      break;
    }
    case CORE_RMSNORM:
      each_row([&](int64_t i) {
        float* to = op.out[0] >= 0 ? f32(op.out[0], i) : scratch(thread);
        const float* residual = op.in[1] >= 0 ? f32(op.in[1], i) : nullptr;
        rmsnorm_row(f32(op.in[0], i), values, residual, op.f[0], to, width);
        if (op.out[1] >= 0) quantize_row(to, row(op.out[1], 0), i, rows, width);
      });
      break;
    case CORE_LINEAR:
      run_linear(op, batch, thread);
      break;
    case CORE_ROPE_TABLE:
      each_row([&](int64_t i) {
        rope_table_row(batch.positions[i], values, op.f[0], f32(out, i), width / 2);
      });
      break;
    case CORE_ROPE:
      run_rope(op, batch, thread);
      break;
    case CORE_ATTENTION:
      attention_->store(team, thread, batch, *cache_, op.i[0], f32(op.in[0], 0));
      team.barrier();
      attention_->attend(team, thread, batch, *cache_, op.i[0], op.f[0], f32(op.in[0], 0),
                         f32(out, 0));
      break;
    case CORE_SWIGLU:
      each_row([&](int64_t i) {
        float* to = op.out[0] >= 0 ? f32(op.out[0], i) : scratch(thread);
        swiglu_row(f32(op.in[0], i), to, width);
        if (op.out[1] >= 0) quantize_row(to, row(op.out[1], 0), i, rows, width);
      });
      break;
    case CORE_ADD:
      each_row([&](int64_t i) { add_row(f32(op.in[0], i), f32(op.in[1], i), f32(out, i), width); });
      break;
    case CORE_QUANTIZE:
      each_row([&](int64_t i) { quantize_row(f32(op.in[0], i), row(out, 0), i, rows, width); });
      break;
    case CORE_GATHER:
      each_row([&](int64_t i) {
        std::memcpy(f32(out, i), f32(op.in[0], batch.logits_rows[i]),
                    static_cast<size_t>(width) * sizeof(float));
      });
      break;
    case CORE_SUM_SQUARES: {
      const Buffer& in = buffers_[op.in[0]];
      const int64_t columns = in.shape.width;
      team.for_chunks(thread, (columns + kSumColumns - 1) / kSumColumns, [&](int64_t chunk) {
        const int64_t first = chunk * kSumColumns;
        sum_squares_columns(f32(op.in[0], 0) + first, num_rows(in, batch), columns,
                            f32(out, 0) + op.i[0] + first, std::min(kSumColumns, columns - first));
      });
      break;
    }
  }
  team.barrier();
}

void CoreProgram::run_linear(const CoreOp& op, const CoreBatch& batch, int thread) {
  const int64_t num_tokens = num_rows(buffers_[op.out[0]], batch);
  const int64_t stride = buffers_[op.out[0]].shape.width;
  ThreadTeam& team = team_->threads;

  struct Part {
    const PackedMatrix* w;
    MatmulOutput out;
    int64_t tiles, num_chunks;  // tiles of a chunk; chunks of the matrix
  };
  Part parts[3];
  int num_parts = 0;
  for (int64_t column = 0; num_parts < 3 && op.weight[num_parts] >= 0; ++num_parts) {
    Part& part = parts[num_parts];
    part.w = weights_[op.weight[num_parts]]->matrix.get();
    const int32_t bias = op.weight[3 + num_parts];
    part.out = {f32(op.out[0], 0) + column, stride,
                bias >= 0 ? weights_[bias]->values.data() : nullptr,
                op.in[1] >= 0 ? f32(op.in[1], 0) + column : nullptr};
    column += part.w->rows;
    part.tiles = num_tokens > kTokenBlock / 2 ? kPrefillTiles : kBatchTiles;
    if (uses_blas(*part.w, num_tokens)) {
      const int64_t share = part.w->num_tiles / team.num_threads();
      part.tiles = std::clamp<int64_t>(share, 1, kPanelRows / Tile::kRows);
    }
    part.num_chunks = (part.w->num_tiles + part.tiles - 1) / part.tiles;
  }
  // A thread's share is its share of each part, and so the tiles that it packed.
  const auto size = [&](const Part& part, int owner) {
    return team.share_begin(part.num_chunks, owner + 1) - team.share_begin(part.num_chunks, owner);
  };
  const auto share = [&](int owner) {
    int64_t sum = 0;
    for (int i = 0; i < num_parts; ++i) sum += size(parts[i], owner);
    return sum;
  };
  team.for_shares(thread, share, [&](int owner, int64_t index) {
    const Part* part = parts;
    for (; index >= size(*part, owner); ++part) index -= size(*part, owner);
    const PackedMatrix& w = *part->w;
    const Buffer& in = buffers_[w.is_quantized() ? op.in[0] : op.in[2]];
    const int64_t begin = (team.share_begin(part->num_chunks, owner) + index) * part->tiles;
    const int64_t end = std::min(begin + part->tiles, w.num_tiles);
    if (uses_blas(w, num_tokens)) {
      blas_tiles(w, begin, end, reinterpret_cast<const float*>(in.data), num_tokens, part->out,
                 reinterpret_cast<float*>(panels_.data()) + thread * kPanelFloats);
      return;
    }
    for (int64_t token = 0; token < num_tokens; token += kTokenBlock) {
      const int64_t last = std::min(token + kTokenBlock, num_tokens);
      matmul_tiles(w, begin, end - begin, in.data, token, last, num_tokens, part->out);
    }
  });
}

void CoreProgram::run_rope(const CoreOp& op, const CoreBatch& batch, int thread) {
  const int64_t first = op.i[0], heads = op.i[1], head_dim = op.i[2], pairs = op.i[3] / 2;
  team_->threads.for_chunks(thread, batch.num_tokens, [&](int64_t i) {
    for (int64_t head = 0; head < heads; ++head) {
      rope_head(f32(op.in[1], i), op.i[4] != 0, f32(op.in[0], i) + first + head * head_dim, pairs);
    }
  });
}
