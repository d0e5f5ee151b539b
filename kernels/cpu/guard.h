// Maps of files that may be cut off while they are used.
#pragma once
#include <cstddef>
#include <cstdint>

namespace gmoe {

// From now on memory of [begin, begin + size) that the system cannot fill from its file reads as zeros instead of
// ending the process, and is remembered. Returns a number for the calls below; -1: too many, or not on this system.
int guard(uintptr_t begin, size_t size);
bool lost(int number);
void unguard(int number);

}  // namespace gmoe
