#include "cases.h"
#include "ops/masked_softmax.h"

#include <vector>

CASES(masked_softmax) {
  using namespace megagpt;
  const int64_t batch = 2, heads = 1, queries = 3;
  for (Dtype dtype : kDtypes) {
    for (int64_t keys : {2, 13, 40, 1030, 41000}) {  // a warp or a block for each row, and one whose row does not fit into shared memory
      if (keys > 2000 && dtype == Dtype::bf16) continue;
      const int64_t n = batch * heads * queries * keys;
      std::vector<uint8_t> mask(batch * keys);
      for (int64_t i = 0; i < batch * keys; ++i) mask[i] = i % 3 != 1;
      // Once as they come, once an element behind: y lies otherwise than x, so that elements are moved one by one.
      const Buffer x(dtype, n), y(dtype, n), grad_y(dtype, n), grad_x(dtype, n), later(dtype, n + 1);
      run(Cuda{nullptr}, MaskedSoftmaxForward{x, nullptr, y, batch, heads, queries, keys, 0.5f, true, dtype});
      run(Cuda{nullptr}, MaskedSoftmaxBackward{grad_y, y, nullptr, grad_x, batch, heads, queries, keys, 0.5f, true, dtype});
      if (keys > 2000) continue;
      run(Cuda{nullptr}, MaskedSoftmaxForward{x, mask.data(), y, batch, heads, queries, keys, 0.5f, false, dtype});
      run(Cuda{nullptr}, MaskedSoftmaxBackward{grad_y, y, mask.data(), grad_x, batch, heads, queries, keys, 0.5f, false, dtype});
      if (keys > 100) continue;
      void* const behind = static_cast<char*>((void*)later) + bytes_of(dtype);
      run(Cuda{nullptr}, MaskedSoftmaxForward{behind, mask.data(), y, batch, heads, queries, keys, 0.5f, true, dtype});
      run(Cuda{nullptr}, MaskedSoftmaxBackward{grad_y, y, mask.data(), behind, batch, heads, queries, keys, 0.5f, true, dtype});
    }
  }
}
