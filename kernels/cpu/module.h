// What the parts of the Python module share.
#pragma once
#include <nanobind/nanobind.h>

#include <string>

#include "block.h"

namespace gmoe {

bool allowed(const std::string& level);  // whether GMOE_CPU_LEVEL names none below it
const Level& level_named(const std::string& name);  // an unknown or absent one is an error
const Format& format_named(const Level& level, const std::string& name);

void bind_step(nanobind::module_& m);
void bind_states(nanobind::module_& m);
void bind_bpe(nanobind::module_& m);

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace gmoe
