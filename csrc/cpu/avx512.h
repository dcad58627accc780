// Compiles what follows for AVX-512 F, BW, VL and DQ. setup.py makes cpu/<op>.avx512.cpp of it: this header, then cpu/<op>.cpp.
#pragma once
#include "cpu/baseline.h"
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
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
#ifndef __AVX512F__
#define __AVX512F__ 1
#endif
#ifndef __AVX512BW__
#define __AVX512BW__ 1
#endif
#ifndef __AVX512VL__
#define __AVX512VL__ 1
#endif
#ifndef __AVX512DQ__
#define __AVX512DQ__ 1
#endif
#define MEGAGPT_CAPABILITY Avx512
#define CPU_CAPABILITY AVX512
#define CPU_CAPABILITY_AVX512
