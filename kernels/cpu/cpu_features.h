// What this CPU and its system allow: all that runs before a level is chosen. `cpu_features.cpp` is compiled for any
// CPU; a level's own file holds nothing but data (`Level`, `Step`) until its `here` has said yes, and no code that
// another file might come to share.
#pragma once

namespace gmoe {

bool has_all();  // that portable code needs

#if defined(__x86_64__)
bool has_avx2();  // with F16C and FMA
bool has_avxvnni();
bool has_avx512_vnni();  // AVX-512's form of what `has_avxvnni` stands for
bool has_avx512_step();  // what the rows of a step need
bool has_avx512();       // with VNNI, VBMI, BITALG and GFNI
bool has_amx();          // beside it; asks the system for its registers
#elif defined(__aarch64__)
bool has_dot_products();
bool has_i8mm();
#endif

}  // namespace gmoe
