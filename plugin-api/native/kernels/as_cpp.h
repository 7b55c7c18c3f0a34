// The kernels as C++. See as_cpp.cpp.

#pragma once

#include "call.h"

// Runs a kernel on the CPU, whose pointers are first turned by `opened`, if it is given. Null, or why it does not run.
const char* run_as_cpp(const KernelCall& call, void* (*opened)(const void* address));
