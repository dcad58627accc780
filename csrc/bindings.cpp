// Importing megagpt._C loads this library, which is all the module is for: the operators of torch.ops.megagpt register themselves (ops/<op>.cpp).
#include <Python.h>

static PyModuleDef empty_module{PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&empty_module); }
