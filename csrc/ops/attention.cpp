#include "ops/attention.h"

#include <algorithm>
#include <utility>

#include "isa/simd.h"
#include "ops/attention_kernel.h"
#include "ops/math.h"

namespace rillm {
namespace {

constexpr int kPartition = 256;
constexpr int kShortPartitions = 16;                // those after them are four times as long
constexpr int kVectors = Simd::kLanes > 8 ? 4 : 8;  // of query rows that reuse a converted key
constexpr int kRows = kVectors * Simd::kLanes;
constexpr int64_t kMaxPartials = 512;

static_assert(kPartition % kSlab == 0);

// The vectors that a tile's query rows fill, the last one perhaps in part.
int32_t vectors_of(const AttentionTile& tile) {
  return (tile.num_rows + Simd::kLanes - 1) / Simd::kLanes;
}

// Partitions are longer where there are many of them anyway: each leaves a state behind, which is
// written and read again.
int64_t partition_begin(int64_t index) {
  return (index + 3 * std::max<int64_t>(0, index - kShortPartitions)) * kPartition;
}

int64_t num_partitions(int32_t num_keys) {
  const int64_t num_short = (num_keys + kPartition - 1) / kPartition;
  return num_short - std::max<int64_t>(0, num_short - kShortPartitions) * 3 / 4;
}

}  // namespace

// Softmax state of a tile: for each query row its maximum, sum and unnormalised output.
struct AttentionPlan::State {
  float* max;  // [kVectors, kLanes]
  float* sum;  // [kVectors, kLanes]
  float* out;  // [kVectors, head_dim, kLanes]
};

AttentionPlan::State AttentionPlan::state(float* at) const {
  return {at, at + kRows, at + 2 * kRows};
}

// Scratch of a thread: queries | query positions | keys | values | the last rows of both, as
// cached | two states.
AttentionPlan::AttentionPlan(const AttentionShape& shape, int num_threads, int32_t max_tokens)
    : shape_(shape),
      group_(shape.num_heads / shape.num_kv_heads),
      state_floats_(kRows * (shape.head_dim + 2)),
      scratch_floats_(kRows * (shape.head_dim + 1) + 2 * kSlab * shape.head_dim +
                      kRowsTogether * shape.head_dim + 2 * state_floats_) {
  const auto bytes = [](int64_t floats) { return static_cast<uint64_t>(floats) * sizeof(float); };
  scratch_ = Memory(bytes(scratch_floats_ * num_threads));
  partials_ = Memory(bytes(state_floats_ * kMaxPartials));
  tiles_.reserve(static_cast<size_t>(max_tokens) * group_);
  first_partial_.reserve(static_cast<size_t>(max_tokens) * group_ + 1);
}

void AttentionPlan::prepare(const CoreBatch& batch) {
  tiles_.clear();
  first_partial_.assign(1, 0);
  for (int32_t seq = 0; seq < batch.num_seqs; ++seq) {
    const int32_t rows = (batch.cu_seqlens_q[seq + 1] - batch.cu_seqlens_q[seq]) * group_;
    for (int32_t row = 0; row < rows; row += kRows) {
      const AttentionTile tile{seq, row, std::min(kRows, rows - row)};
      tiles_.push_back(tile);
      const int32_t last_token =
          batch.cu_seqlens_q[seq] + (tile.first_row + tile.num_rows - 1) / group_;
      first_partial_.push_back(first_partial_.back() +
                               num_partitions(batch.positions[last_token] + 1));
    }
  }
  const int64_t partials = first_partial_.back() * shape_.num_kv_heads;
  const auto items = static_cast<int64_t>(tiles_.size()) * shape_.num_kv_heads;
  split_ = partials > items && partials <= kMaxPartials;
}

void AttentionPlan::store(ThreadTeam& team, int thread, const CoreBatch& batch,
                          const CoreCache& cache, int32_t layer, const float* qkv) const {
  const int64_t q = int64_t{shape_.num_heads} * shape_.head_dim;
  const int64_t kv = int64_t{shape_.num_kv_heads} * shape_.head_dim;
  team.for_chunks(thread, batch.num_tokens, [&](int64_t token) {
    const float* keys = qkv + token * (q + 2 * kv) + q;
    for (int32_t head = 0; head < shape_.num_kv_heads; ++head) {
      const int64_t slot = batch.slot_mapping[token];
      cache.store(keys + head * shape_.head_dim, cache.row(layer, false, slot, head));
      cache.store(keys + kv + head * shape_.head_dim, cache.row(layer, true, slot, head));
    }
  });
}

// Queries of the tile, scaled, transposed to [vector, dim, lane]; unused lanes are zero at
// position 0, where there is always a key to attend to.
void AttentionPlan::load_queries(const CoreBatch& batch, const AttentionTile& tile, int32_t kv_head,
                                 float scale, const float* qkv, float* q, float* positions) const {
  const int64_t stride = int64_t{shape_.num_heads + 2 * shape_.num_kv_heads} * shape_.head_dim;
  const int32_t num_vectors = vectors_of(tile);
  const float to_log2 = scale * 0x1.715476p+0f;  // scores are powers of two, not of e
  for (int32_t row = 0; row < num_vectors * Simd::kLanes; ++row) {
    float* to = q + row / Simd::kLanes * shape_.head_dim * Simd::kLanes + row % Simd::kLanes;
    if (row >= tile.num_rows) {
      positions[row] = 0.0f;
      for (int32_t d = 0; d < shape_.head_dim; ++d) to[d * Simd::kLanes] = 0.0f;
      continue;
    }
    const int32_t token = batch.cu_seqlens_q[tile.seq] + (tile.first_row + row) / group_;
    const int32_t head = kv_head * group_ + (tile.first_row + row) % group_;
    const float* from = qkv + token * stride + int64_t{head} * shape_.head_dim;
    positions[row] = static_cast<float>(batch.positions[token]);
    for (int32_t d = 0; d < shape_.head_dim; ++d) to[d * Simd::kLanes] = from[d] * to_log2;
  }
}

template <class Chunk>
void AttentionPlan::attend_partition(const CoreBatch& batch, const CoreCache& cache, int32_t layer,
                                     const AttentionTile& tile, int32_t kv_head, int64_t partition,
                                     float* scratch, const State& out) const {
  const int32_t dim = shape_.head_dim;
  const int32_t num_vectors = vectors_of(tile);
  const float* queries = scratch;
  const float* positions = queries + kRows * dim;
  float* floats = scratch + kRows * (dim + 1);
  Slab<Chunk> keys{cache.row_bytes, floats, {}, {}, {}, {}}, values = keys;
  // Where one pair of vectors uses a slab, its keys are done with when its values are converted.
  if (num_vectors > 2) values.floats += kSlab * dim;
  auto* last_rows = reinterpret_cast<uint8_t*>(floats + 2 * kSlab * dim);

  for (int32_t i = 0; i < num_vectors; ++i) {
    Simd::store(out.max + i * Simd::kLanes, Simd::set1(kMasked));
    Simd::store(out.sum + i * Simd::kLanes, Simd::zero());
  }
  std::fill_n(out.out, int64_t{num_vectors} * dim * Simd::kLanes, 0.0f);

  // No query of the tile sees past its last token; keys after its first token need the mask.
  const int32_t chunk = batch.cu_seqlens_q[tile.seq];
  const int32_t first_position = batch.positions[chunk + tile.first_row / group_];
  const int32_t last_position =
      batch.positions[chunk + (tile.first_row + tile.num_rows - 1) / group_];
  const int64_t begin = partition_begin(partition);
  const int64_t end = std::min<int64_t>(partition_begin(partition + 1), last_position + 1);
  const int32_t* blocks = batch.block_tables + int64_t{tile.seq} * batch.max_blocks;
  const int32_t block_size = cache.config.block_size;
  const uint8_t* key_rows = cache.row(layer, false, 0, kv_head);
  const uint8_t* value_rows = cache.row(layer, true, 0, kv_head);
  // Where a key's row lies behind those of the first slot. In 32 bits: a division takes its time.
  const auto row_of = [&](int64_t key) {
    const auto position = static_cast<uint32_t>(key), size = static_cast<uint32_t>(block_size);
    return blocks[position / size] * cache.block_bytes + position % size * cache.row_bytes;
  };
  for (int64_t slab = begin; slab < end; slab += kSlab) {
    const int count = static_cast<int>(std::min<int64_t>(kSlab, end - slab));
    const int num_keys = (count + kKeys - 1) / kKeys * kKeys;
    // The next partition is likely this thread's too.
    const auto next_row = [&](int64_t key) { return row_of(key <= last_position ? key : slab); };
    const int64_t next = next_row(slab + kSlab), second = next_row(slab + kSlab + kRowsTogether);
    const auto start = [&](Slab<Chunk>& rows, const uint8_t* at, uint8_t* copy) {
      rows.ahead = at + next;
      rows.first_end = at + next + kRowsTogether * cache.row_bytes;
      rows.second = at + second;
      for (int first = 0; first < count; first += kRowsTogether) {
        const uint8_t*& from = rows.rows[first / kRowsTogether];
        from = at + row_of(slab + first);
        const int64_t bytes = std::min(kRowsTogether, count - first) * cache.row_bytes;
        const int64_t all_bytes = kRowsTogether * cache.row_bytes;
        if (bytes == all_bytes) continue;
        // Slots past the end may hold another sequence's leftovers, and those infinity: zeros.
        std::copy_n(from, bytes, copy);
        std::fill_n(copy + bytes, all_bytes - bytes, 0);
        from = copy;
      }
    };
    start(keys, key_rows, last_rows);
    start(values, value_rows, last_rows + kRowsTogether * cache.row_bytes);
    // One vector or two of queries and outputs at a time, which the first-level cache holds.
    for (int32_t i = 0; i < num_vectors; i += 2) {
      const auto attend_vectors = [&]<int n>(auto& keys, auto& values) {
        alignas(64) float scores[n * kSlab * Simd::kLanes], keep[n * Simd::kLanes];
        score_keys<n>(queries + int64_t{i} * dim * Simd::kLanes, keys, num_keys, dim, scores);
        for (int32_t v = 0; v < n; ++v) {
          const int32_t lane = (i + v) * Simd::kLanes;
          update_softmax(scores + v * kSlab * Simd::kLanes, num_keys, slab, first_position,
                         positions + lane, out.max + lane, out.sum + lane, keep + v * Simd::kLanes);
        }
        add_values<n>(scores, keep, values, num_keys, dim,
                      out.out + int64_t{i} * dim * Simd::kLanes);
      };
      const auto attend_slab = [&](auto& keys, auto& values) {
        if (num_vectors - i >= 2) {
          attend_vectors.template operator()<2>(keys, values);
        } else {
          attend_vectors.template operator()<1>(keys, values);
        }
      };
      if (i == 0) {
        attend_slab(keys, values);
      } else {
        ConvertedSlab keys_again{keys.floats}, values_again{values.floats};
        attend_slab(keys_again, values_again);
      }
    }
  }
}

namespace {

// Folds one partition's state into the running one, in the order of positions.
template <class State>
void fold(const State& total, const State& part, int64_t num_vectors, int64_t dim) {
  for (int64_t i = 0; i < num_vectors; ++i) {
    const int64_t lane = i * Simd::kLanes;
    const Simd::F old_max = Simd::load(total.max + lane), part_max = Simd::load(part.max + lane);
    const Simd::F max = Simd::max(old_max, part_max);
    const Simd::F keep = exp2(Simd::sub(old_max, max)), gain = exp2(Simd::sub(part_max, max));
    Simd::store(total.max + lane, max);
    Simd::store(total.sum + lane, Simd::fma(Simd::load(part.sum + lane), gain,
                                            Simd::mul(Simd::load(total.sum + lane), keep)));
    for (int64_t d = i * dim; d < (i + 1) * dim; ++d) {
      float* o = total.out + d * Simd::kLanes;
      Simd::store(o, Simd::fma(Simd::load(part.out + d * Simd::kLanes), gain,
                               Simd::mul(Simd::load(o), keep)));
    }
  }
}

}  // namespace

void AttentionPlan::write(const CoreBatch& batch, const AttentionTile& tile, int32_t kv_head,
                          const State& state, float* out) const {
  const int32_t dim = shape_.head_dim;
  for (int32_t row = 0; row < tile.num_rows; ++row) {
    const int32_t token = batch.cu_seqlens_q[tile.seq] + (tile.first_row + row) / group_;
    const int32_t head = kv_head * group_ + (tile.first_row + row) % group_;
    const float* from = state.out + row / Simd::kLanes * dim * Simd::kLanes + row % Simd::kLanes;
    const float scale = 1.0f / state.sum[row];
    float* to = out + (int64_t{token} * shape_.num_heads + head) * dim;
    for (int32_t d = 0; d < dim; ++d) to[d] = from[d * Simd::kLanes] * scale;
  }
}

void AttentionPlan::attend(ThreadTeam& team, int thread, const CoreBatch& batch,
                           const CoreCache& cache, int32_t layer, float scale, const float* qkv,
                           float* out) const {
  float* scratch = reinterpret_cast<float*>(scratch_.data()) + thread * scratch_floats_;
  float* positions = scratch + int64_t{kRows} * shape_.head_dim;
  const State part = state(scratch + scratch_floats_ - 2 * state_floats_);
  const State total = state(scratch + scratch_floats_ - state_floats_);
  const auto partial = [&](int64_t index) {
    return state(reinterpret_cast<float*>(partials_.data()) + index * state_floats_);
  };
  const auto num_tiles = static_cast<int64_t>(tiles_.size());
  const auto reset = [&](const AttentionTile& tile) {
    std::fill_n(total.max, kRows, kMasked);
    std::fill_n(total.sum, kRows, 0.0f);
    std::fill_n(total.out, int64_t{vectors_of(tile)} * shape_.head_dim * Simd::kLanes, 0.0f);
  };
  const int64_t num_partials = first_partial_.back();
  const auto attend = cache.config.ggml_type == 1 ? &AttentionPlan::attend_partition<F16Chunk>
                                                  : &AttentionPlan::attend_partition<Q8Chunk>;
  const auto attend_partition = [&](auto&&... arguments) {
    (this->*attend)(batch, cache, layer, arguments...);
  };

  if (split_) {
    int64_t loaded = -1;  // whose queries are in scratch
    team.for_chunks(thread, num_partials * shape_.num_kv_heads, [&](int64_t index) {
      const auto kv_head = static_cast<int32_t>(index / num_partials);
      const auto next =
          std::upper_bound(first_partial_.begin(), first_partial_.end(), index % num_partials);
      const int64_t tile = next - first_partial_.begin() - 1;
      if (std::exchange(loaded, kv_head * num_tiles + tile) != kv_head * num_tiles + tile) {
        load_queries(batch, tiles_[tile], kv_head, scale, qkv, scratch, positions);
      }
      attend_partition(tiles_[tile], kv_head, index % num_partials - first_partial_[tile], scratch,
                       partial(index));
    });
    team.barrier();
  }
  team.for_chunks(thread, num_tiles * shape_.num_kv_heads, [&](int64_t index) {
    const auto kv_head = static_cast<int32_t>(index / num_tiles);
    const int64_t t = index % num_tiles;
    const AttentionTile& tile = tiles_[t];
    if (!split_) load_queries(batch, tile, kv_head, scale, qkv, scratch, positions);
    reset(tile);
    for (int64_t p = 0; p < first_partial_[t + 1] - first_partial_[t]; ++p) {
      if (split_) {
        fold(total, partial(kv_head * num_partials + first_partial_[t] + p), vectors_of(tile),
             shape_.head_dim);
      } else {
        attend_partition(tile, kv_head, p, scratch, part);
        fold(total, part, vectors_of(tile), shape_.head_dim);
      }
    }
    write(batch, tile, kv_head, total, out);
  });
}

}  // namespace rillm
