// Function multiversioning: one portable binary that uses the vector width of the machine it is on.
#pragma once

#include <cstdlib>  // defines __GLIBC__ where there is one: clones need its ifunc support

#if defined(__x86_64__) && defined(__GLIBC__) && \
    ((defined(__clang__) && __clang_major__ >= 14) || (!defined(__clang__) && __GNUC__ >= 8))
#define VKRT_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define VKRT_CLONES
#endif

#if defined(_MSC_VER)
#define VKRT_RESTRICT __restrict
#else
#define VKRT_RESTRICT __restrict__
#endif
