// The operators of torch.ops.megagpt and their schemas; the bodies register themselves, one file per operator and device.
#include <Python.h>
#include <torch/library.h>

TORCH_LIBRARY(megagpt, m) {
  m.def("token_logprob_forward(Tensor logits, Tensor ids, int num_valid, float scale) -> (Tensor max, Tensor sum_exp, Tensor target)");
  m.def("token_logprob_backward(Tensor grad_out, Tensor logits, Tensor ids, Tensor lse, int num_valid, float scale) -> Tensor");
}

// Importing megagpt._C loads this library, which is all the module is for.
static PyModuleDef empty_module{PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&empty_module); }
