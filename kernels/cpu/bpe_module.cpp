// The Python door of the byte pair encoding: addresses of packed strings in; `bpe.py` keeps them alive.
#include "bpe.h"

#include <nanobind/stl/string.h>

#include "module.h"

namespace nb = nanobind;

namespace gmoe {
namespace {

std::string_view utf8(nb::handle text) {
  Py_ssize_t size;
  const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
  if (!data) throw nb::python_error();
  return {data, size_t(size)};
}

}  // namespace

void bind_bpe(nb::module_& m) {
  m.def("find_places", [](uintptr_t data, size_t bytes, size_t count, uintptr_t places) {
    return find_places({at<const char>(data), bytes, count}, at<int64_t>(places));
  });
  nb::class_<Bpe>(m, "Bpe")
      .def("__init__",
           [](Bpe* self, uintptr_t tokens, size_t token_bytes, size_t token_count, uintptr_t merges, size_t merge_bytes,
              size_t merge_count, bool whole, bool bytes) {
             new (self) Bpe({at<const char>(tokens), token_bytes, token_count},
                            {at<const char>(merges), merge_bytes, merge_count}, whole, bytes);
           })
      .def("find", [](const Bpe& self, nb::str text) { return self.find(utf8(text)); })
      .def("encode", [](const Bpe& self, nb::list pieces) {
        std::vector<std::string> texts;  // of their own: others run meanwhile
        for (nb::handle piece : pieces) texts.emplace_back(utf8(piece));
        std::vector<uint32_t> ids;
        {
          nb::gil_scoped_release unlocked;
          for (const std::string& text : texts) self.encode(text, ids);
        }
        nb::list found;
        for (uint32_t id : ids) found.append(id);
        return found;
      });
}

}  // namespace gmoe
