// Compiles what follows for any processor. setup.py makes cpu/<op>.portable.cpp of it: this header, then cpu/<op>.cpp.
#pragma once
#include "cpu/baseline.h"
#define MEGAGPT_CAPABILITY Portable
#define CPU_CAPABILITY DEFAULT
#define CPU_CAPABILITY_DEFAULT
