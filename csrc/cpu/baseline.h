// All that must stay runnable on any processor of this architecture: included before the instruction set is raised, so that what the linker
// shares between files (inline functions of the standard library and of torch) was compiled without it.
#pragma once

#include <ATen/NumericUtils.h>
#include <ATen/Parallel.h>
#include <c10/util/BFloat16-math.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <c10/util/Load.h>
#include <c10/util/TypeCast.h>
#include <c10/util/complex.h>
#include <c10/util/copysign.h>
#include <c10/util/irange.h>
#include <c10/util/qint32.h>
#include <c10/util/qint8.h>
#include <c10/util/quint8.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#include <algorithm>
#include <array>
#include <bitset>
#include <climits>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <ostream>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/kernel.h"
#include "common/rows.h"
