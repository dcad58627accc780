// Compiles what follows for AVX2 with FMA and F16C. setup.py makes cpu/<op>.avx2.cpp of it: this header, then cpu/<op>.cpp.
#pragma once
#include "cpu/baseline.h"
#pragma GCC target("avx2,fma,f16c")
// g++ before 13 raises the instruction set by the pragma without defining its macros, which torch's headers ask for.
#ifndef __AVX__
#define __AVX__ 1
#endif
#ifndef __AVX2__
#define __AVX2__ 1
#endif
#ifndef __FMA__
#define __FMA__ 1
#endif
#ifndef __F16C__
#define __F16C__ 1
#endif
#define MEGAGPT_CAPABILITY Avx2
#define CPU_CAPABILITY AVX2
#define CPU_CAPABILITY_AVX2
