// The Python door of the recurrent layers' kernels: addresses and sizes in; `cpu_recurrent.py` has checked them.
#include <nanobind/nanobind.h>

#include "module.h"
#include "states.h"
#include "step.h"
#include "tape.h"

namespace nb = nanobind;

namespace gmoe {
namespace {

// Rows of floats that may be parts of wider ones.
struct Rows {
  uintptr_t address;
  size_t row;
};

}  // namespace

void bind_states(nb::module_& m) {
  nb::class_<Rows>(m, "Rows").def("__init__", [](Rows* self, uintptr_t address, size_t row) {
    new (self) Rows{address, row};
  });
  nb::class_<Paths>(m, "Paths")
      .def("__init__", [](Paths* self, uintptr_t starts, uintptr_t source, uintptr_t target, uintptr_t kept,
                          uintptr_t kept_after, int sequences) {
        new (self) Paths{at<const int32_t>(starts), at<const int32_t>(source), at<const int32_t>(target),
                         at<const int32_t>(kept), at<const int32_t>(kept_after), sequences};
      });
  nb::class_<DeltaRule>(m, "DeltaRule")
      .def("__init__", [](DeltaRule* self, int n_key, bool neighbours, uintptr_t a, uintptr_t dt_bias, uintptr_t norm,
                          float eps, bool sigmoid) {
        new (self) DeltaRule{n_key, neighbours, at<const float>(a), at<const float>(dt_bias), at<const float>(norm),
                             eps, sigmoid};
      });
  nb::class_<KimiRule>(m, "KimiRule")
      .def("__init__", [](KimiRule* self, uintptr_t a, uintptr_t dt_bias, uintptr_t norm, float eps, float key_eps,
                          float floor) {
        new (self) KimiRule{at<const float>(a), at<const float>(dt_bias), at<const float>(norm), eps, key_eps, floor};
      });
  nb::class_<SpaceRule>(m, "SpaceRule")
      .def("__init__", [](SpaceRule* self, int n_group, uintptr_t a, uintptr_t dt_bias, uintptr_t d, uintptr_t norm,
                          float eps) {
        new (self) SpaceRule{n_group, at<const float>(a), at<const float>(dt_bias), at<const float>(d),
                             at<const float>(norm), eps};
      });
  m.def("short_conv", [](const Step& step, int channels, int taps, bool silu, uintptr_t weight, uintptr_t bias, Rows x,
                         Rows before, Rows after, uintptr_t y, int rows, Rows slots, int n_slots, const Paths& paths,
                         int threads) {
    const Convolution c = {channels, taps, silu, at<const float>(weight), at<const float>(bias),
                           at<const float>(x.address), at<const float>(before.address), at<const float>(after.address),
                           x.row, before.row, after.row, slots.row, at<float>(y), at<float>(slots.address)};
    enter([=, &step] {
      check(paths, rows, n_slots);
      convolve(step, c, paths, threads);
    });
  });
  m.def("delta_rule", [](const Step& step, const DeltaRule& rule, int heads, int dk, int dv, Rows qkv, Rows alpha,
                         Rows beta, Rows z, uintptr_t y, int rows, uintptr_t slots, int n_slots, const Paths& paths,
                         int threads) {
    const Delta d = {{heads, dk, dv, rows, at<float>(y), at<float>(slots), nullptr}, rule, at<const float>(qkv.address),
                     at<const float>(alpha.address), at<const float>(beta.address), at<const float>(z.address),
                     qkv.row, alpha.row, beta.row, z.row};
    enter([=, &step] {
      check(paths, rows, n_slots);
      learn(step, d, paths, threads);
    });
  });
  m.def("kimi_delta", [](const Step& step, const KimiRule& rule, int heads, int dk, int dv, Rows q, Rows k, Rows v,
                         Rows fade, Rows beta, Rows gate, uintptr_t y, int rows, uintptr_t slots, int n_slots,
                         const Paths& paths, int threads) {
    const Kimi each = {{heads, dk, dv, rows, at<float>(y), at<float>(slots), nullptr}, rule, at<const float>(q.address),
                       at<const float>(k.address), at<const float>(v.address), at<const float>(fade.address),
                       at<const float>(beta.address), at<const float>(gate.address), q.row, k.row, v.row, fade.row,
                       beta.row, gate.row};
    enter([=, &step] {
      check(paths, rows, n_slots);
      learn(step, each, paths, threads);
    });
  });
  m.def("state_space", [](const Step& step, const SpaceRule& rule, int heads, int dk, int dv, Rows xbc, Rows dt, Rows z,
                          uintptr_t y, int rows, uintptr_t slots, int n_slots, const Paths& paths, int threads) {
    const Space s = {{heads, dk, dv, rows, at<float>(y), at<float>(slots), nullptr}, rule, at<const float>(xbc.address),
                     at<const float>(dt.address), at<const float>(z.address), xbc.row, dt.row, z.row};
    enter([=, &step] {
      check(paths, rows, n_slots);
      learn(step, s, paths, threads);
    });
  });
  m.def("channel_space", [](const Step& step, int channels, int dk, uintptr_t a, uintptr_t d, Rows x, Rows dt, Rows b,
                            Rows c, Rows z, uintptr_t y, int rows, uintptr_t slots, int n_slots, const Paths& paths,
                            int threads) {
    const Channels each = {channels, dk, at<const float>(a), at<const float>(d), at<const float>(x.address),
                           at<const float>(dt.address), at<const float>(b.address), at<const float>(c.address),
                           at<const float>(z.address), x.row, dt.row, b.row, c.row, z.row, at<float>(y),
                           at<float>(slots)};
    enter([=, &step] {
      check(paths, rows, n_slots);
      learn(step, each, paths, threads);
    });
  });
}

}  // namespace gmoe
