// What every level reads or borrows: the grids' tables, the sign masks, and a thread's scratch memory.
#include "block.h"
#include "memory.h"

namespace gmoe {

Grids grids = {};
uint8_t sign_masks[256][8];

char* scratch(size_t bytes) {
  thread_local Memory memory;
  return memory.of(bytes);
}

}  // namespace gmoe
