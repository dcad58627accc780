#include "ops/adamw.h"

#include <cmath>
#include <string>
#include <vector>

#include "common/launch.h"

namespace megagpt {
namespace {

using at::Tensor;

constexpr const char* op = "adamw";

void check_length(const char* name, at::TensorList list, at::TensorList params) {
  TORCH_CHECK(list.size() == params.size(), op, ": ", name, " holds ", list.size(), " tensors; it must hold ", params.size(),
              ", one for each parameter");
}

// list[i] belongs to `param`. The element's name is made up only where there is something to say.
void check_element(const char* list, size_t i, const Tensor& tensor, const Tensor& param, at::ScalarType dtype, bool written) {
  const bool fits = tensor.scalar_type() == dtype && tensor.sizes() == param.sizes() && tensor.device() == param.device();
  if (fits && (!written || tensor.is_contiguous())) return;
  const auto name = list + ("[" + std::to_string(i) + "]");
  check_tensor(op, name.c_str(), tensor, param, dtype, param.sizes());
  TORCH_CHECK(false, op, ": ", name, " has strides ", tensor.strides(), "; it must be contiguous, as it is written in place");
}

void check_scalar(const char* name, const std::optional<Tensor>& tensor, const Tensor& param) {
  if (!tensor) return;
  check_dtype(op, name, *tensor, at::kFloat);
  TORCH_CHECK(tensor->numel() == 1, op, ": ", name, " has shape ", tensor->sizes(), "; it must have one element");
  check_device(op, name, *tensor, param);
}

// The memory of a tensor that the kernel changes: autograd is told, so that it refuses to use the old values.
template <class T>
T* changed(const Tensor& tensor) {
  tensor.unsafeGetTensorImpl()->bump_version();
  return out<T>(tensor);
}

void update(at::TensorList params, at::TensorList grads, at::TensorList exp_avgs, at::TensorList exp_avg_sqs, at::TensorList copies,
            const std::optional<Tensor>& grad_scale, const std::optional<Tensor>& overflow, double lr, double beta1, double beta2, double eps,
            double weight_decay, int64_t step) {
  if (params.empty()) return;
  check_length("grads", grads, params);
  check_length("exp_avgs", exp_avgs, params);
  check_length("exp_avg_sqs", exp_avg_sqs, params);
  if (!copies.empty()) check_length("copies", copies, params);
  TORCH_CHECK(lr >= 0, op, ": lr is ", lr, "; it must not be negative");
  TORCH_CHECK(beta1 >= 0 && beta1 < 1, op, ": beta1 is ", beta1, "; it must be in [0, 1)");
  TORCH_CHECK(beta2 >= 0 && beta2 < 1, op, ": beta2 is ", beta2, "; it must be in [0, 1)");
  TORCH_CHECK(eps >= 0, op, ": eps is ", eps, "; it must not be negative");
  TORCH_CHECK(weight_decay >= 0, op, ": weight_decay is ", weight_decay, "; it must not be negative");
  TORCH_CHECK(step >= 1, op, ": step is ", step, "; the first update is step 1");
  check_scalar("grad_scale", grad_scale, params[0]);
  check_scalar("overflow", overflow, params[0]);
  check_storage_dtype(op, "grads[0]", grads[0]);
  const auto grad_dtype = grads[0].scalar_type(), copy_dtype = copies.empty() ? at::kFloat : copies[0].scalar_type();
  TORCH_CHECK(copies.empty() || copy_dtype == at::kHalf || copy_dtype == at::kBFloat16, op, ": copies[0] is ", copy_dtype,
              "; it must be float16 or bfloat16");
  for (size_t i = 0; i < params.size(); ++i) {
    check_element("params", i, params[i], params[i], at::kFloat, true);
    if (params[i].device() != params[0].device()) check_device(op, ("params[" + std::to_string(i) + "]").c_str(), params[i], params[0]);
    check_element("grads", i, grads[i], params[i], grad_dtype, false);
    check_element("exp_avgs", i, exp_avgs[i], params[i], at::kFloat, true);
    check_element("exp_avg_sqs", i, exp_avg_sqs[i], params[i], at::kFloat, true);
    if (!copies.empty()) check_element("copies", i, copies[i], params[i], copy_dtype, true);
  }

  std::vector<Tensor> dense;  // keeps the gradients that had to be copied
  std::vector<AdamWTensor> tensors;
  dense.reserve(params.size());
  tensors.reserve(params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    if (params[i].numel() == 0) continue;
    dense.push_back(grads[i].contiguous());
    tensors.push_back({changed<float>(params[i]), data(dense.back()), changed<float>(exp_avgs[i]), changed<float>(exp_avg_sqs[i]),
                       copies.empty() ? nullptr : changed<void>(copies[i]), params[i].numel()});
  }
  launch(AdamW{tensors.data(), static_cast<int64_t>(tensors.size()), data<float>(grad_scale), data<float>(overflow),
               static_cast<float>(1 - lr * weight_decay), static_cast<float>(1 - beta1), static_cast<float>(beta2), static_cast<float>(1 - beta2),
               static_cast<float>(std::sqrt(1 - std::pow(beta2, step))), static_cast<float>(eps),
               static_cast<float>(lr / (1 - std::pow(beta1, step))), dtype_of(grads[0]), copies.empty() ? Dtype::f32 : dtype_of(copies[0])},
         params[0]);
}

void implement(torch::Library& m) { m.impl("adamw", update); }

}  // namespace

MEGAGPT_SCHEMAS(m) {
  m.def(
      "adamw(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] copies, Tensor? grad_scale, "
      "Tensor? overflow, float lr, float beta1, float beta2, float eps, float weight_decay, int step) -> ()");
}

MEGAGPT_IMPLEMENTATIONS(implement)

}  // namespace megagpt
