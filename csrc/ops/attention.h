// Causal attention over the paged cache, for a ragged batch (online softmax: Milakov and
// Gimelshein, 2018; Dao et al., 2022).
//
// The query heads that share a KV head, of one or several tokens, are the lanes of the vectors:
// each key row is converted to float32 once and serves all of them (16 heads in GLM-4-9B).
//
// Keys are taken in slabs of kSlab and folded in partitions that begin at fixed positions, counted
// from the start of the sequence. The order of every sum thus depends on positions only, so a
// token's result does not depend on chunking, batching or on how many threads share a long context.
#pragma once

#include <cstdint>
#include <vector>

#include "core.h"
#include "kv_cache.h"
#include "memory.h"
#include "thread_team.h"

namespace rillm {

struct AttentionShape {
  int32_t num_heads, num_kv_heads, head_dim;
};

// Some query rows (token, head) of one sequence that use one KV head.
struct AttentionTile {
  int32_t seq, first_row, num_rows;  // row = token in chunk * group + head in group
};

// What all attention ops of a program share: the tiles of the current batch, and scratch memory.
class AttentionPlan {
 public:
  AttentionPlan(const AttentionShape& shape, int num_threads, int32_t max_tokens);

  void prepare(const CoreBatch& batch);

  // Phase 1: k and v of every token into the cache. qkv: [num_tokens, q | k | v].
  void store(ThreadTeam& team, int thread, const CoreBatch& batch, const CoreCache& cache,
             int32_t layer, const float* qkv) const;
  // Phases 2 and 3 (with a barrier between): out [num_tokens, num_heads * head_dim].
  void attend(ThreadTeam& team, int thread, const CoreBatch& batch, const CoreCache& cache,
              int32_t layer, float scale, const float* qkv, float* out) const;

  uint64_t num_bytes() const { return scratch_.size() + partials_.size(); }

 private:
  struct State;
  State state(float* at) const;
  void load_queries(const CoreBatch& batch, const AttentionTile& tile, int32_t kv_head, float scale,
                    const float* qkv, float* q, float* positions) const;
  template <class Chunk>
  void attend_partition(const CoreBatch& batch, const CoreCache& cache, int32_t layer,
                        const AttentionTile& tile, int32_t kv_head, int64_t partition,
                        float* scratch, const State& out) const;
  void write(const CoreBatch& batch, const AttentionTile& tile, int32_t kv_head, const State& state,
             float* out) const;

  const AttentionShape shape_;
  const int32_t group_;
  const int64_t state_floats_, scratch_floats_;
  std::vector<AttentionTile> tiles_;
  std::vector<int64_t> first_partial_;  // [tiles + 1]: of one KV head
  bool split_ = false;                  // partitions of one tile run on several threads
  Memory scratch_, partials_;
};

}  // namespace rillm
