// The Python door of the step's kernels: addresses and sizes in; `cpu_step.py` has checked them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "experts.h"
#include "module.h"
#include "step.h"
#include "tape.h"

namespace nb = nanobind;

namespace gmoe {
namespace {

const Step& step_named(const std::string& name) {
#if defined(__x86_64__)
  for (const Step* step : {&step_portable, &step_avx2, &step_avx512})
#elif defined(__aarch64__)
  for (const Step* step : {&step_portable, &step_neon})
#else
  for (const Step* step : {&step_portable})
#endif
    if (step->name == name && step->here()) return *step;
  throw std::invalid_argument("this CPU has no level " + name);
}

// Matrices that are multiplied with the same rows, one after the other in the result, or each with rows of its own.
class Linears {
 public:
  explicit Linears(const std::string& level) : level_(level_named(level)) {}

  void add(const std::string& format, uintptr_t weights, size_t row_bytes, int rows, int cols, uintptr_t bias,
           float scale) {
    products_.push_back({&format_named(level_, format), at<const uint8_t>(weights), row_bytes, rows,
                         at<const float>(bias), nullptr, scale});
    cols_ = cols;
  }

  void operator()(uintptr_t x, int tokens, uintptr_t out, int threads) const {
    std::vector<Product> products = products_;
    float* to = at<float>(out);
    for (Product& p : products) {
      p.out = to;
      to += size_t(tokens) * p.rows;
    }
    enter([=, level = &level_, cols = cols_] {
      matmul(*level, products.data(), int(products.size()), cols, at<const float>(x), tokens, threads);
    });
  }

  void by_head(uintptr_t x, size_t x_token, size_t x_head, int tokens, uintptr_t out, size_t out_token, size_t out_head,
               int threads) const {
    const ByHead<const float> from = {at<const float>(x), x_token, x_head};
    const ByHead<float> to = {at<float>(out), out_token, out_head};
    enter([=] {
      matmul_by_head(level_, products_.data(), int(products_.size()), cols_, from, tokens, to, threads);
    });
  }

 private:
  const Level& level_;
  std::vector<Product> products_;
  int cols_ = 0;
};

}  // namespace

void bind_step(nb::module_& m) {
  m.def("step_levels", [] {
    std::vector<std::string> names;
    for (const char* name : {"portable", "avx2", "avx512", "neon"}) {
      if (!allowed(name)) continue;
      try {
        step_named(name);
        names.push_back(name);
      } catch (const std::invalid_argument&) {
      }
    }
    return names;
  });
  nb::class_<Linears>(m, "Linears")
      .def(nb::init<const std::string&>())
      .def("add", &Linears::add)
      .def("__call__", &Linears::operator())
      .def("by_head", &Linears::by_head);
  nb::class_<Router>(m, "Router")
      .def("__init__", [](Router* self, int experts, int chosen, int groups, int used, int gating, uintptr_t bias,
                          bool renormalize, float scale, uintptr_t each, int chunk) {
        new (self) Router{experts,     chosen, groups,                used, Gating(gating), at<const float>(bias),
                          renormalize, scale,  at<const float>(each), chunk};
      });
  nb::class_<Cache>(m, "Cache")
      .def("__init__", [](Cache* self, int number, int heads, int dk, int dv, uintptr_t keys, uintptr_t values,
                          uintptr_t key_scales, uintptr_t value_scales) {
        new (self) Cache{Number(number), heads, dk, dv, at<char>(keys), at<char>(values), at<uint16_t>(key_scales),
                         at<uint16_t>(value_scales)};
      });
  nb::class_<Heads>(m, "Heads")
      .def("__init__", [](Heads* self, int heads, int d, int width, uintptr_t weight, uintptr_t bias, float eps) {
        new (self) Heads{nullptr, heads, d, width, at<const float>(weight), at<const float>(bias), eps};
      });
  nb::class_<Step>(m, "Step")
      .def_static("named", [](const std::string& name) { return &step_named(name); }, nb::rv_policy::reference)
      .def("norm",
           [](const Step& s, uintptr_t x, int rows, int n, uintptr_t weight, uintptr_t bias, float eps, uintptr_t y,
              int threads) {
             enter([=, &s] {
               norm(s, at<const float>(x), rows, n, at<const float>(weight), at<const float>(bias), eps, at<float>(y),
                    threads);
             });
           })
      .def("centre",
           [](const Step& s, uintptr_t x, int rows, int n, uintptr_t y, int threads) {
             enter([=, &s] { centre(s, at<const float>(x), rows, n, at<float>(y), threads); });
           })
      .def("residual",
           [](const Step& s, uintptr_t x, float scale, int rows, int n, uintptr_t y, int threads) {
             enter([=, &s] { residual(s, at<const float>(x), scale, rows, n, at<float>(y), threads); });
           })
      .def("rotate",
           [](const Step& s, uintptr_t x, uintptr_t y, int tokens, int heads, int d, int n_rot, bool halves,
              uintptr_t cos, uintptr_t sin, uintptr_t positions, int threads) {
             enter([=, &s] {
               rotate(s, at<const float>(x), at<float>(y), tokens, heads, d, n_rot, halves, at<const float>(cos),
                      at<const float>(sin), at<const int64_t>(positions), threads);
             });
           })
      .def("prepare",
           [](const Step& s, Heads q, Heads k, uintptr_t q_at, uintptr_t k_at, int tokens, int n_rot, bool halves,
              uintptr_t cos, uintptr_t sin, uintptr_t positions, int threads) {
             q.x = at<float>(q_at);
             k.x = at<float>(k_at);
             enter([=, &s] {
               prepare(s, q, k, tokens, n_rot, halves, at<const float>(cos), at<const float>(sin),
                       at<const int64_t>(positions), threads);
             });
           })
      .def("gate",
           [](const Step& s, int kind, float most, float most_up, uintptr_t g, size_t apart, uintptr_t up, int rows,
              int n, uintptr_t y, int threads) {
             enter([=, &s] {
               gate(s, kind, most, most_up, at<const float>(g), apart, at<const float>(up), rows, n, at<float>(y),
                    threads);
             });
           })
      .def("weave",
           [](const Step& s, uintptr_t mixes, int tokens, int n, int rounds, float eps, uintptr_t read,
              uintptr_t write, int threads) {
             enter([=, &s] {
               weave(s, at<const float>(mixes), tokens, n, rounds, eps, at<float>(read), at<float>(write), threads);
             });
           })
      .def("blend",
           [](const Step& s, uintptr_t x, int tokens, int n, uintptr_t y, uintptr_t weights, int m, int d,
              uintptr_t out, int threads) {
             enter([=, &s] {
               blend(s, at<const float>(x), tokens, n, at<const float>(y), at<const float>(weights), m, d,
                     at<float>(out), threads);
             });
           })
      .def("choose",
           [](const Step& s, const Router& router, uintptr_t logits, int tokens, uintptr_t ids, uintptr_t weights,
              int threads) {
             enter([=, &s] {
               choose(s, router, at<const float>(logits), tokens, at<int32_t>(ids), at<float>(weights), threads);
             });
           })
      .def("store",
           [](const Step& s, const Cache& cache, uintptr_t slots, int tokens, uintptr_t keys, uintptr_t values,
              int threads) {
             enter([=, &s] {
               store(s, cache, at<const int64_t>(slots), tokens, at<const float>(keys), at<const float>(values),
                     threads);
             });
           })
      .def("attend", [](const Step& s, const Cache& cache, uintptr_t q, uintptr_t out, size_t out_row, int n_head,
                        float scale, float cap, uintptr_t sinks, int sight, int64_t size, uintptr_t positions,
                        uintptr_t tables, int table_width, uintptr_t starts, int sequences, int threads) {
        Attention a = {cache, at<const float>(q), at<float>(out), out_row, n_head, scale, at<const float>(sinks),
                       Sight(sight), size, at<const int64_t>(positions), cap};
        enter([=, &s] {
          attend(s, a, at<const int32_t>(tables), table_width, at<const int32_t>(starts), sequences, threads);
        });
      });
  nb::class_<Tape>(m, "Tape")
      .def(nb::init<>())
      .def("__len__", &Tape::size)
      .def("run", &Tape::run, nb::call_guard<nb::gil_scoped_release>());
  m.def("record", [](Tape* tape) { recording() = tape; }, nb::arg().none());
  m.def("warm", [](uintptr_t positions, int tokens, int64_t behind, int64_t step, float growth, uintptr_t weight) {
    enter([=] { warm(at<const int64_t>(positions), tokens, behind, step, growth, at<float>(weight)); });
  });
  m.def("lay", [](uintptr_t x, size_t x_token, size_t x_head, uintptr_t y, size_t y_token, size_t y_head, int tokens,
                  int heads, int n, int threads) {
    enter([=] { lay(at<const float>(x), x_token, x_head, at<float>(y), y_token, y_head, tokens, heads, n, threads); });
  });
  m.def("furthest", [](uintptr_t positions, int64_t n) {
    const int64_t* p = at<const int64_t>(positions);
    return n > 0 ? *std::max_element(p, p + n) : -1;
  });
  m.def("argmax", [](uintptr_t x, int64_t n) { return argmax(at<const float>(x), n); });
  m.def("largest_places", [](uintptr_t x, int64_t n, int64_t k, uintptr_t places) {
    largest_places(at<const float>(x), n, k, at<int64_t>(places));
  });
}

}  // namespace gmoe
