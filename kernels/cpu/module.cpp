// The Python door of the CPU kernels: addresses and sizes in; `cpu_ops.py` has checked them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "experts.h"
#include "guard.h"
#include "module.h"
#include "pool.h"
#include "quantize.h"
#include "tape.h"
#include "values.h"

namespace nb = nanobind;

namespace gmoe {

namespace {

#if defined(__x86_64__)
const Level* const all_levels[] = {
    &portable,
    &avx2,
#if defined(GMOE_AVXVNNI)
    &avxvnni,
#endif
    &avx512,
#if defined(GMOE_AMX)
    &amx,
#endif
};
#elif defined(__aarch64__)
const Level* const all_levels[] = {
    &portable,
    &neon,
#if defined(GMOE_I8MM)
    &neon_i8mm,
#endif
};
#else
const Level* const all_levels[] = {&portable};
#endif

// What this CPU runs, slowest first, up to the one that GMOE_CPU_LEVEL names.
const std::vector<const Level*>& usable_levels() {
  static const std::vector<const Level*> usable = [] {
    const char* highest = std::getenv("GMOE_CPU_LEVEL");
    std::vector<const Level*> found;
    std::string names;
    for (const Level* level : all_levels) {
      if (!level->here()) continue;
      found.push_back(level);
      names += (names.empty() ? "" : ", ") + std::string(level->name);
      if (highest && std::string(highest) == level->name) return found;
    }
    if (highest && *highest)
      throw std::invalid_argument("GMOE_CPU_LEVEL is '" + std::string(highest) + "'; this CPU has " + names);
    return found;
  }();
  return usable;
}

}  // namespace

bool allowed(const std::string& name) {
  const char* highest = std::getenv("GMOE_CPU_LEVEL");
  const std::string most = usable_levels().back()->name;
  if (!highest || !*highest) return true;
  for (const Level* level : all_levels) {
    if (level->name == name) return true;
    if (level->name == most) return false;
  }
  return false;
}

const Level& level_named(const std::string& name) {
  for (const Level* level : usable_levels())
    if (level->name == name) return *level;
  throw std::invalid_argument("this CPU has no level " + name);
}

const Format& format_named(const Level& level, const std::string& name) {
  for (int i = 0; i < level.count; i++)
    if (level.formats[i].name == name) return level.formats[i];
  throw std::invalid_argument("the CPU kernels have no format " + name);
}

namespace {

std::vector<std::string> levels() {
  std::vector<std::string> names;
  for (const Level* level : usable_levels()) names.push_back(level->name);
  return names;
}

std::vector<std::string> format_names() {
  std::vector<std::string> names;
  for (int i = 0; i < portable.count; i++) names.push_back(portable.formats[i].name);
  return names;
}

void set_table(const std::string& name, nb::bytes data) {
  uint8_t* copy = new uint8_t[data.size()];  // lives as long as the module
  std::memcpy(copy, data.c_str(), data.size());
  if (name == "IQ1_S") grids.iq1 = copy;
  else if (name == "IQ2_XXS") grids.iq2_xxs = copy;
  else if (name == "IQ2_XS") grids.iq2_xs = copy;
  else if (name == "IQ2_S") grids.iq2_s = copy;
  else if (name == "IQ3_XXS") grids.iq3_xxs = copy;
  else if (name == "IQ3_S") grids.iq3_s = copy;
  else if (name == "signs") grids.signs = copy;
  else throw std::invalid_argument("no table " + name);
}

struct Matrix {  // of each expert, as Python hands it over
  std::string format;
  int rows, cols;
  size_t row_bytes;
  uintptr_t address, bias, scale;

  Matrices on(const Level& level) const {
    return {&format_named(level, format), rows, cols, row_bytes, at<const int64_t>(address), at<const float>(bias),
            at<const float>(scale)};
  }
};

// Touches `size` bytes from all threads, as a product that does nothing else would; returns their sum by words.
uint64_t read_all(const uint8_t* data, size_t size, int threads) {
  constexpr size_t part = 1 << 20;
  const Level& level = *usable_levels().back();
  std::atomic<uint64_t> total{0};
  parallel(int((size + part - 1) / part), threads, [&](int i) {
    total.fetch_add(level.read(data + size_t(i) * part, std::min(part, size - size_t(i) * part)));
  });
  return total.load();
}

Gate gate_named(const std::string& name, float most, float most_up) {
  const char* names[] = {"swiglu",     "geglu",         "reglu",        "relu2",
                         "swiglu_oai", "swiglu_within", "swiglu_under", "situ"};
  for (int i = 0; i < 8; i++)
    if (name == names[i]) return {Curve(i), most, most_up};
  throw std::invalid_argument("unknown activation " + name);
}

}  // namespace
}  // namespace gmoe

NB_MODULE(_cpu, m) {
  nb::set_leak_warnings(false);  // a model may still be there when the interpreter ends
  using namespace gmoe;
  m.doc() = "CPU kernels of gmoe.";
  bind_step(m);
  bind_states(m);
  bind_bpe(m);
  for (int byte = 0; byte < 256; byte++)
    for (int bit = 0; bit < 8; bit++) sign_masks[byte][bit] = byte >> bit & 1 ? 255 : 0;
  m.def("levels", &levels);
  m.def("formats", &format_names);
  m.def("usable_cores", &usable_cores);
  m.def("quota_cores", &quota_cores);
  m.def("set_table", &set_table);
  m.def("guard", &guard);
  m.def("lost", &lost);
  m.def("unguard", &unguard);
  m.def("read", [](uintptr_t data, size_t size, int threads) {
    nb::gil_scoped_release unlocked;
    return read_all(at<const uint8_t>(data), size, threads);
  });
  nb::class_<Matrix>(m, "Matrix")
      .def("__init__", [](Matrix* self, std::string format, int rows, int cols, size_t row_bytes, uintptr_t address,
                          uintptr_t bias, uintptr_t scale) {
        new (self) Matrix{format, rows, cols, row_bytes, address, bias, scale};
      });
  m.def("matmul", [](const std::string& level_name, const std::string& format, uintptr_t weights, size_t row_bytes,
                     int rows, int cols, uintptr_t x, int tokens, uintptr_t out, int threads) {
    const Level& level = level_named(level_name);
    const Format& f = format_named(level, format);
    const Product product = {&f, at<const uint8_t>(weights), row_bytes, rows, nullptr, at<float>(out)};
    enter([=, &level] { matmul(level, &product, 1, cols, at<const float>(x), tokens, threads); });
  });
  m.def(
      "expert_rows",
      [](const std::string& level_name, const Matrix* gate, const Matrix& up, const Matrix& down,
         const std::string& activation, float most, float most_up, uintptr_t x, uintptr_t ids, int tokens, int k,
         uintptr_t out, int threads) {
        const Level& level = level_named(level_name);
        Gate kind = gate_named(activation, most, most_up);
        Matrices u = up.on(level), d = down.on(level), g = gate ? gate->on(level) : u;
        enter([=, &level] {
          expert_rows(level, gate ? &g : nullptr, u, d, kind, at<const float>(x), at<const int32_t>(ids), tokens, k,
                      at<float>(out), threads);
        });
      },
      nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
      nb::arg(), nb::arg(), nb::arg(), nb::arg());
  m.def(
      "expert_mlp",
      [](const std::string& level_name, const Matrix* gate, const Matrix& up, const Matrix& down,
         const std::string& activation, float most, float most_up, uintptr_t x, uintptr_t ids, uintptr_t weights,
         int tokens, int k, uintptr_t y, int threads) {
        const Level& level = level_named(level_name);
        Gate kind = gate_named(activation, most, most_up);
        Matrices u = up.on(level), d = down.on(level), g = gate ? gate->on(level) : u;
        enter([=, &level] {
          expert_mlp(level, gate ? &g : nullptr, u, d, kind, at<const float>(x), at<const int32_t>(ids),
                     at<const float>(weights), tokens, k, at<float>(y), threads);
        });
      },
      nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
      nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg());
  nb::class_<Scheme>(m, "Scheme")
      .def("__init__", [](Scheme* self, int block, int group, bool minimum, bool below_zero, int scale_low,
                          int scale_high, int min_high, bool power, std::vector<float> points) {
        new (self) Scheme{block, group, minimum, below_zero, scale_low, scale_high, min_high, power, points};
      });
  m.def("quantize", [](const Scheme& scheme, uintptr_t x, int64_t blocks, uintptr_t weight, int cols, uintptr_t d,
                       uintptr_t dmin, uintptr_t scales, uintptr_t mins, uintptr_t codes, int threads) {
    nb::gil_scoped_release unlocked;
    Encoded out = {at<float>(d), at<float>(dmin), at<int16_t>(scales), at<int16_t>(mins), at<uint8_t>(codes)};
    quantize(scheme, at<const float>(x), blocks, at<const float>(weight), cols, out, threads);
  });
  m.def("absent", [](uintptr_t addresses, int experts, uintptr_t ids, size_t count) -> int64_t {
    for (size_t i = 0; i < count; i++) {  // the place of the first id that has no expert, or -1
      int id = at<const int32_t>(ids)[i];
      if (id >= experts || (id >= 0 && !at<const int64_t>(addresses)[id])) return int64_t(i);
    }
    return -1;
  });
  m.def("has_values", &has_values);
  m.def("rows_of", [](const std::string& format, uintptr_t weights, size_t row_bytes, int rows, int cols,
                      uintptr_t ids, int count, uintptr_t out, int threads) {
    enter([=] {
      rows_of(format, at<const uint8_t>(weights), row_bytes, rows, cols, at<const int64_t>(ids), count, at<float>(out),
              threads);
    });
  });
  m.def("combine", [](const std::string& level_name, uintptr_t rows, uintptr_t weights, uintptr_t ids, int tokens,
                      int k, int width, uintptr_t y, int threads) {
    const Level& level = level_named(level_name);
    enter([=, &level] {
      combine(level, at<const float>(rows), at<const float>(weights), at<const int32_t>(ids), tokens, k, width,
              at<float>(y), threads);
    });
  });
}
