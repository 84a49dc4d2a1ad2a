// One tensor in the form its op reads (see CoreWeightKind in core.h).
#pragma once

#include <memory>
#include <vector>

#include "core.h"
#include "formats/format.h"
#include "layouts/packed_matrix.h"

struct CoreWeight {
  CoreWeightKind kind;
  const rillm::Format* format;
  int64_t rows, cols;
  std::unique_ptr<rillm::PackedMatrix> matrix;  // CORE_MATRIX
  const uint8_t* table = nullptr;               // CORE_TABLE: borrowed
  std::vector<float> values;                    // CORE_VECTOR
};

namespace rillm {
int create_weight(CoreTeam* team, int32_t kind, const CoreTensor* tensor, CoreWeight** out);
// See core_pack.
int pack_for(CoreTeam* team, const char* variant, const CoreTensor& tensor, uint8_t* out,
             uint64_t num_bytes);
}  // namespace rillm
