#include "weight.h"

#include <cstring>

#include "error.h"
#include "layouts/pack.h"

namespace rillm {
namespace {

// Checks a tensor that is to be packed, or is (for `packed`), or is neither: its type, its shape
// and that all its bytes are there.
int check(const CoreTensor& tensor, bool is_matrix, const Layout* packed, const Format** out) {
  const Format* format = find_format(tensor.ggml_type);
  if (format == nullptr) {
    return fail(CORE_UNSUPPORTED, "ggml type %d is not a weight format that rillm runs",
                tensor.ggml_type);
  }
  const auto rows = static_cast<long long>(tensor.rows), cols = static_cast<long long>(tensor.cols);
  constexpr int64_t kMax = int64_t{1} << 40;
  if (rows < 1 || cols < 1 || rows > kMax / cols) {
    return fail(CORE_INVALID, "bad shape [%lld, %lld]", rows, cols);
  }
  if (cols % format->block_size != 0) {
    return fail(CORE_INVALID, "rows of %lld weights are not whole %s blocks of %d", cols,
                format->name, format->block_size);
  }
  if (is_matrix && cols % 32 != 0) {
    return fail(CORE_INVALID, "a matrix needs a multiple of 32 columns, not %lld", cols);
  }
  const int64_t bytes = packed != nullptr ? packed_bytes(*packed, *format, rows, cols)
                                          : rows * bytes_of_row(*format, cols);
  if (tensor.data == nullptr || tensor.num_bytes != static_cast<uint64_t>(bytes)) {
    return fail(CORE_INVALID, "a%s [%lld, %lld] %s tensor has %lld bytes, not %llu",
                packed != nullptr ? " packed" : "", rows, cols, format->name,
                static_cast<long long>(bytes), static_cast<unsigned long long>(tensor.num_bytes));
  }
  *out = format;
  return CORE_OK;
}

}  // namespace

int create_weight(CoreTeam* team, int32_t kind, const CoreTensor* tensor, CoreWeight** out) {
  const bool is_matrix = kind == CORE_MATRIX || kind == CORE_PACKED;
  const Format* format = nullptr;
  if (const int status =
          check(*tensor, is_matrix, kind == CORE_PACKED ? &kOwnLayout : nullptr, &format);
      status != CORE_OK) {
    return status;
  }
  auto weight = std::make_unique<CoreWeight>();
  weight->kind = is_matrix ? CORE_MATRIX : static_cast<CoreWeightKind>(kind);
  weight->format = format;
  weight->rows = tensor->rows;
  weight->cols = tensor->cols;
  const auto* data = static_cast<const uint8_t*>(tensor->data);
  switch (kind) {
    case CORE_MATRIX:
      if (team == nullptr) return fail(CORE_INVALID, "a matrix is packed by a thread team");
      weight->matrix = std::make_unique<PackedMatrix>(team->threads, *format, *tensor);
      break;
    case CORE_PACKED:
      weight->matrix = std::make_unique<PackedMatrix>(*format, *tensor);
      break;
    case CORE_TABLE:
      weight->table = data;
      break;
    case CORE_VECTOR:
      weight->values.resize(static_cast<size_t>(tensor->rows * tensor->cols));
      format->dequantize(data, weight->values.data(), tensor->rows * tensor->cols);
      break;
    default:
      return fail(CORE_INVALID, "weight kind %d", kind);
  }
  *out = weight.release();
  return CORE_OK;
}

int pack_for(CoreTeam* team, const char* variant, const CoreTensor& tensor, uint8_t* out,
             uint64_t num_bytes) {
  const Layout* layout = find_layout(variant);
  if (layout == nullptr) return fail(CORE_UNSUPPORTED, "no variant of rillm is called %s", variant);
  const Format* format = nullptr;
  if (const int status = check(tensor, true, nullptr, &format); status != CORE_OK) return status;
  const int64_t bytes = packed_bytes(*layout, *format, tensor.rows, tensor.cols);
  if (num_bytes != static_cast<uint64_t>(bytes)) {
    return fail(CORE_INVALID, "a packed matrix has %lld bytes, not %llu",
                static_cast<long long>(bytes), static_cast<unsigned long long>(num_bytes));
  }
  std::memset(out, 0, num_bytes);
  pack_matrix(team->threads, *layout, *format, tensor, out);
  return CORE_OK;
}

}  // namespace rillm
