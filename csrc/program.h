// A program: a flat list of ops over buffers, checked once, then run once per engine step.
//
// After validate() no op looks at a shape again: ids are in range, widths agree and the weights
// have the kind and size that the op reads. A batch is checked at every run, because its numbers
// come from outside; then the whole list runs on the team with one barrier after each phase.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "core.h"
#include "kv_cache.h"
#include "memory.h"
#include "ops/attention.h"
#include "weight.h"

struct CoreProgram {
 public:
  CoreProgram(CoreTeam* team, CoreCache* cache, const CoreProgramConfig& config);

  int validate();  // CoreStatus; must succeed before anything else is called
  void allocate();
  int run(const CoreBatch& batch);

  const float* output() const { return f32(output_, 0); }
  int add_rows(int32_t buffer, int32_t first, int32_t count, float* sum) const;
  uint64_t num_bytes() const;

 private:
  struct Buffer {
    CoreBuffer shape;
    int64_t row_bytes;
    uint8_t* data;
  };

  int validate_op(const CoreOp& op, int index) const;
  int validate_linear(const CoreOp& op, int index) const;
  int validate_batch(const CoreBatch& batch) const;
  bool is_buffer(int32_t id, int32_t kind, int64_t width) const;
  const CoreWeight* weight(int32_t id, CoreWeightKind kind) const;  // null where it is not one

  void run_op(const CoreOp& op, const CoreBatch& batch, int thread);
  void run_linear(const CoreOp& op, const CoreBatch& batch, int thread);
  bool uses_blas(const rillm::PackedMatrix& w, int64_t num_rows) const {
    return blas_min_rows_ > 0 && num_rows >= blas_min_rows_ && !w.is_quantized();
  }
  void run_rope(const CoreOp& op, const CoreBatch& batch, int thread);
  int64_t num_rows(const Buffer& buffer, const CoreBatch& batch) const {
    if (buffer.shape.rows == CORE_ROWS_ONE) return 1;
    return buffer.shape.rows == CORE_ROWS_TOKENS ? batch.num_tokens : batch.num_logits;
  }
  // What a buffer has room for; kind: CoreRows.
  int32_t max_rows(int32_t kind) const {
    if (kind == CORE_ROWS_ONE) return 1;
    return kind == CORE_ROWS_TOKENS ? max_tokens_ : max_logits_;
  }
  uint8_t* row(int32_t id, int64_t index) const {
    return buffers_[id].data + index * buffers_[id].row_bytes;
  }
  float* scratch(int thread) const {
    return reinterpret_cast<float*>(scratch_.data()) + thread * scratch_floats_;
  }
  float* f32(int32_t id, int64_t index) const {
    return id < 0 ? nullptr : reinterpret_cast<float*>(row(id, index));
  }

  CoreTeam* const team_;
  CoreCache* const cache_;
  const int32_t max_tokens_, max_logits_, output_, blas_min_rows_;
  std::vector<CoreOp> ops_;
  std::vector<Buffer> buffers_;
  std::vector<CoreWeight*> weights_;
  std::vector<rillm::Memory> slots_;
  std::optional<rillm::AttentionPlan> attention_;
  rillm::Memory scratch_;       // one row of floats for each thread
  int64_t scratch_floats_ = 0;  // of one thread
  rillm::Memory panels_;        // one of OpenBLAS's panels for each thread
  int32_t num_heads_ = 0;       // of the attention ops; all share one plan
};
