// What a program must be before it may run, and what a batch must be before it is believed.
#include "error.h"
#include "ops/blas.h"
#include "program.h"

using rillm::fail;

bool CoreProgram::is_buffer(int32_t id, int32_t kind, int64_t width) const {
  return id >= 0 && id < static_cast<int32_t>(buffers_.size()) && buffers_[id].shape.kind == kind &&
         buffers_[id].shape.width == width;
}

const CoreWeight* CoreProgram::weight(int32_t id, CoreWeightKind kind) const {
  if (id < 0 || id >= static_cast<int32_t>(weights_.size())) return nullptr;
  return weights_[id]->kind == kind ? weights_[id] : nullptr;
}

int CoreProgram::validate() {
  if (max_tokens_ < 1 || max_logits_ < 1) return fail(CORE_INVALID, "a program needs rows");
  if (blas_min_rows_ > 0 && !rillm::has_blas()) {
    return fail(CORE_INVALID, "the program asks for OpenBLAS, and core_load_blas was not called");
  }
  constexpr int32_t kMaxWidth = 1 << 24;
  for (size_t i = 0; i < buffers_.size(); ++i) {
    const CoreBuffer& buffer = buffers_[i].shape;
    const bool known = (buffer.kind == CORE_BUFFER_F32 || buffer.kind == CORE_BUFFER_Q8) &&
                       buffer.rows >= CORE_ROWS_TOKENS && buffer.rows <= CORE_ROWS_ONE;
    if (!known || buffer.width < 1 || buffer.width > kMaxWidth || buffer.slot < 0 ||
        buffer.slot >= static_cast<int32_t>(buffers_.size()) ||
        (buffer.kind == CORE_BUFFER_Q8 && buffer.width % 32 != 0)) {
      return fail(CORE_INVALID, "buffer %zu: kind %d, rows %d, width %d, slot %d", i, buffer.kind,
                  buffer.rows, buffer.width, buffer.slot);
    }
  }
  for (size_t i = 0; i < ops_.size(); ++i) {
    if (const int status = validate_op(ops_[i], static_cast<int>(i)); status != CORE_OK) {
      return status;
    }
    if (ops_[i].kind == CORE_ATTENTION) {
      if (num_heads_ != 0 && num_heads_ != ops_[i].i[1]) {
        return fail(CORE_UNSUPPORTED, "op %zu: all layers must have the same number of heads", i);
      }
      num_heads_ = ops_[i].i[1];
    }
  }
  const bool has_output = output_ >= 0 && output_ < static_cast<int32_t>(buffers_.size());
  if (!has_output || buffers_[output_].shape.kind != CORE_BUFFER_F32) {
    return fail(CORE_INVALID, "output buffer %d", output_);
  }
  return CORE_OK;
}

int CoreProgram::validate_op(const CoreOp& op, int index) const {
  const auto num_buffers = static_cast<int32_t>(buffers_.size());
  for (const int32_t id : {op.in[0], op.in[1], op.in[2], op.out[0], op.out[1]}) {
    if (id < -1 || id >= num_buffers) return fail(CORE_INVALID, "op %d: buffer %d", index, id);
  }
  const auto width = [&](int32_t id) { return id < 0 ? 0 : buffers_[id].shape.width; };
  const auto rows = [&](int32_t id) { return id < 0 ? -1 : buffers_[id].shape.rows; };
  const int32_t any_out = op.out[0] >= 0 ? op.out[0] : op.out[1];
  const int64_t in = width(op.in[0]), out = width(any_out);
  // All inputs and outputs cover the same rows, except where an op says otherwise.
  const auto same_rows = [&] {
    for (const int32_t id : {op.in[0], op.in[1], op.in[2], op.out[0], op.out[1]}) {
      if (id >= 0 && rows(id) != rows(any_out)) return false;
    }
    return any_out >= 0;
  };
  const auto f32 = [&](int32_t id, int64_t n) { return is_buffer(id, CORE_BUFFER_F32, n); };
  const auto optional_f32 = [&](int32_t id, int64_t n) { return id < 0 || f32(id, n); };
  const auto optional_q8 = [&](int32_t id, int64_t n) {
    return id < 0 || is_buffer(id, CORE_BUFFER_Q8, n);
  };
  const auto vector = [&](int32_t id, int64_t n) {
    const CoreWeight* w = weight(id, CORE_VECTOR);
    return w != nullptr && static_cast<int64_t>(w->values.size()) == n;
  };
  bool good = false;
  switch (op.kind) {
    case CORE_EMBED: {
      const CoreWeight* table = weight(op.weight[0], CORE_TABLE);
      good = table != nullptr && f32(op.out[0], table->cols) && rows(op.out[0]) == CORE_ROWS_TOKENS;
      break;
    }
    case CORE_RMSNORM:
      good = same_rows() && in % 32 == 0 && f32(op.in[0], in) && optional_f32(op.in[1], in) &&
             optional_f32(op.out[0], in) && optional_q8(op.out[1], in) && vector(op.weight[0], in);
      break;
    case CORE_LINEAR:
      if (!same_rows()) break;
      return validate_linear(op, index);
    case CORE_ROPE_TABLE:
      good = f32(op.out[0], out) && rows(op.out[0]) == CORE_ROWS_TOKENS && out % 2 == 0 &&
             vector(op.weight[0], out / 2);
      break;
    case CORE_ROPE: {
      const int64_t first = op.i[0], heads = op.i[1], dim = op.i[2], rotary = op.i[3];
      good = op.in[0] == op.out[0] && f32(op.in[0], in) && f32(op.in[1], rotary) &&
             rows(op.in[0]) == CORE_ROWS_TOKENS && rows(op.in[1]) == CORE_ROWS_TOKENS &&
             first >= 0 && heads >= 1 && dim >= 1 && rotary >= 2 && rotary % 2 == 0 &&
             rotary <= dim && first + heads * dim <= in;
      break;
    }
    case CORE_ATTENTION: {
      if (cache_ == nullptr) return fail(CORE_INVALID, "op %d: attention needs a cache", index);
      const CoreCacheConfig& cache = cache_->config;
      const int64_t heads = op.i[1];
      good = op.i[0] >= 0 && op.i[0] < cache.num_layers && heads >= 1 && heads < (1 << 16) &&
             heads % cache.num_kv_heads == 0 && rows(op.in[0]) == CORE_ROWS_TOKENS &&
             rows(op.out[0]) == CORE_ROWS_TOKENS && op.in[0] != op.out[0] &&
             f32(op.in[0], (heads + 2 * cache.num_kv_heads) * cache.head_dim) &&
             f32(op.out[0], heads * cache.head_dim);
      break;
    }
    case CORE_SWIGLU:
      good = same_rows() && out % 32 == 0 && f32(op.in[0], 2 * out) &&
             optional_f32(op.out[0], out) && optional_q8(op.out[1], out) && op.in[0] != op.out[0];
      break;
    case CORE_ADD:
      good = same_rows() && in % 32 == 0 && f32(op.in[0], in) && f32(op.in[1], in) &&
             f32(op.out[0], in);
      break;
    case CORE_QUANTIZE:
      good = same_rows() && f32(op.in[0], in) && is_buffer(op.out[1], CORE_BUFFER_Q8, in) &&
             op.out[0] < 0;
      break;
    case CORE_GATHER:
      good = f32(op.in[0], in) && f32(op.out[0], in) && rows(op.in[0]) == CORE_ROWS_TOKENS &&
             rows(op.out[0]) == CORE_ROWS_LOGITS;
      break;
    case CORE_SUM_SQUARES:
      good = in % 32 == 0 && f32(op.in[0], in) && f32(op.out[0], out) &&
             rows(op.out[0]) == CORE_ROWS_ONE && op.in[0] != op.out[0] && op.i[0] >= 0 &&
             op.i[0] + in <= out;
      break;
    default:
      return fail(CORE_INVALID, "op %d: unknown kind %d", index, op.kind);
  }
  return good ? CORE_OK
              : fail(CORE_INVALID, "op %d (kind %d): its buffers and weights do not fit together",
                     index, op.kind);
}

int CoreProgram::validate_linear(const CoreOp& op, int index) const {
  int64_t columns = 0;
  for (int part = 0; part < 3 && op.weight[part] >= 0; ++part) {
    const CoreWeight* w = weight(op.weight[part], CORE_MATRIX);
    if (w == nullptr) {
      return fail(CORE_INVALID, "op %d: weight %d is not a matrix", index, part);
    }
    const bool fits = w->matrix->is_quantized() ? is_buffer(op.in[0], CORE_BUFFER_Q8, w->cols)
                                                : is_buffer(op.in[2], CORE_BUFFER_F32, w->cols);
    if (!fits) {
      return fail(CORE_INVALID, "op %d: weight %d [%lld, %lld] does not fit its input", index, part,
                  static_cast<long long>(w->rows), static_cast<long long>(w->cols));
    }
    if (op.weight[3 + part] >= 0) {
      const CoreWeight* bias = weight(op.weight[3 + part], CORE_VECTOR);
      if (bias == nullptr || static_cast<int64_t>(bias->values.size()) != w->rows) {
        return fail(CORE_INVALID, "op %d: the bias of weight %d does not fit", index, part);
      }
    }
    columns += w->rows;
  }
  if (columns == 0 || !is_buffer(op.out[0], CORE_BUFFER_F32, columns) || op.in[2] == op.out[0] ||
      (op.in[1] >= 0 && !is_buffer(op.in[1], CORE_BUFFER_F32, columns))) {
    return fail(CORE_INVALID, "op %d: the output of a linear op does not fit", index);
  }
  return CORE_OK;
}

int CoreProgram::validate_batch(const CoreBatch& batch) const {
  if (batch.num_tokens < 1 || batch.num_tokens > max_tokens_ || batch.num_seqs < 1 ||
      batch.num_seqs > batch.num_tokens || batch.num_logits < 0 || batch.num_logits > max_logits_ ||
      batch.max_blocks < 0) {
    return fail(CORE_INVALID, "batch: %d tokens (max %d), %d sequences, %d logits rows (max %d)",
                batch.num_tokens, max_tokens_, batch.num_seqs, batch.num_logits, max_logits_);
  }
  for (const CoreOp& op : ops_) {
    if (op.kind != CORE_EMBED) continue;
    for (int32_t i = 0; i < batch.num_tokens; ++i) {
      if (batch.token_ids[i] < 0 || batch.token_ids[i] >= weights_[op.weight[0]]->rows) {
        return fail(CORE_INVALID, "batch: token id %d is not in the vocabulary of %lld",
                    batch.token_ids[i], static_cast<long long>(weights_[op.weight[0]]->rows));
      }
    }
  }
  for (int32_t i = 0; i < batch.num_logits; ++i) {
    if (batch.logits_rows[i] < 0 || batch.logits_rows[i] >= batch.num_tokens) {
      return fail(CORE_INVALID, "batch: logits row %d of %d tokens", batch.logits_rows[i],
                  batch.num_tokens);
    }
  }
  if (batch.cu_seqlens_q[0] != 0 || batch.cu_seqlens_q[batch.num_seqs] != batch.num_tokens) {
    return fail(CORE_INVALID, "batch: cu_seqlens_q does not cover the tokens");
  }
  for (int32_t seq = 0; seq < batch.num_seqs; ++seq) {
    const int32_t begin = batch.cu_seqlens_q[seq], end = batch.cu_seqlens_q[seq + 1];
    const int32_t context = batch.context_lens[seq];
    if (begin < 0 || end <= begin || end > batch.num_tokens || context < end - begin) {
      return fail(CORE_INVALID, "batch: sequence %d has tokens [%d, %d) of a context of %d", seq,
                  begin, end, context);
    }
    for (int32_t i = begin; i < end; ++i) {
      if (batch.positions[i] != context - end + i) {
        return fail(CORE_INVALID, "batch: token %d is at position %d, not %d", i,
                    batch.positions[i], context - end + i);
      }
    }
    if (cache_ == nullptr) continue;
    const int32_t block_size = cache_->config.block_size;
    const int64_t num_blocks = (int64_t{context} + block_size - 1) / block_size;
    const int32_t* blocks = batch.block_tables + int64_t{seq} * batch.max_blocks;
    if (num_blocks > batch.max_blocks) {
      return fail(CORE_INVALID, "batch: sequence %d needs %lld blocks, its table has %d", seq,
                  static_cast<long long>(num_blocks), batch.max_blocks);
    }
    for (int64_t k = 0; k < num_blocks; ++k) {
      if (blocks[k] < 0 || blocks[k] >= cache_->config.num_blocks) {
        return fail(CORE_INVALID, "batch: sequence %d uses cache block %d of %d", seq, blocks[k],
                    cache_->config.num_blocks);
      }
    }
    for (int32_t i = begin; i < end; ++i) {
      const int32_t position = batch.positions[i];
      const int64_t slot =
          int64_t{blocks[position / block_size]} * block_size + position % block_size;
      if (batch.slot_mapping[i] != slot) {
        return fail(CORE_INVALID, "batch: token %d goes to slot %d, its block table says %lld", i,
                    batch.slot_mapping[i], static_cast<long long>(slot));
      }
    }
  }
  return CORE_OK;
}
