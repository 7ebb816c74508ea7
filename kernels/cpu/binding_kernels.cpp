// The kernels one by one, for tests against their NumPy truth. Engines use none of this but GivenTable.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <vector>

#include "binding.h"
#include "half.h"
#include "kv_cache.h"
#include "path.h"
#include "sampler.h"

namespace edgemem {
namespace {

constexpr int kMostDimension = 1 << 24;

const std::uint8_t* bytes_of(const nb::object& given, std::size_t wanted, const char* what) {
  const auto array = array_of<Array<const std::uint8_t, 1>>(given, what);
  require(array.size() == wanted, std::string(what) + " want " + std::to_string(wanted) + " bytes", array.size());
  return array.data();
}

Packed packed_of(const GivenTable& given, Buffer<std::uint8_t>& block) {
  Packed packed = given.table.packed();
  block = Buffer<std::uint8_t>(packed.bytes());
  pack(given.table, block.data(), 0, packed.tiles());
  packed.data = block.data();
  return packed;
}

void matmul(const std::string& path_name, const GivenTable& given, Array<const float, 2> x, Array<float, 2> out) {
  const Path& path = choose_path(path_name);
  const int tokens = static_cast<int>(std::min<std::size_t>(x.shape(0), kMostDimension));
  require(x.shape(1) == static_cast<std::size_t>(given.table.columns), "x has another width", x.shape(1));
  require(out.shape(0) == x.shape(0) && out.shape(1) == static_cast<std::size_t>(given.table.rows), "out has another shape",
          out.shape(1));
  Buffer<std::uint8_t> block;
  const Packed packed = packed_of(given, block);
  const std::size_t groups = size(tokens, packed.groups()), stride = size(packed.tiles(), kTileRows);
  Buffer<std::int8_t> codes(is_quantized(packed.kind) ? x.size() : 0);
  Floats scales(groups), sums(groups), offsets(groups), result(static_cast<std::size_t>(tokens) * stride);
  const Activation all = {x.data(), {codes.data(), scales.data(), sums.data(), offsets.data()}};
  for (int t = 0; t < tokens && is_quantized(packed.kind); ++t) {
    const Activation row = all.from(t, packed);
    path.quantize(row.values, packed.columns, packed.group, centre_of(packed.kind), row.quantized);
  }
  path.matmul(packed, all, tokens, result.data(), stride, 0, packed.tiles());
  for (int t = 0; t < tokens; ++t)
    std::copy_n(result.data() + static_cast<std::size_t>(t) * stride, packed.rows, out.data() + size(t, packed.rows));
}

// keys, values: (slots, head_dim); queries, out: (queries, head_dim); ranges: (queries, 2) of slots.
void attend(const std::string& path_name, Array<const float, 2> keys, Array<const float, 2> values,
            Array<const float, 2> queries, Array<const std::int32_t, 2> ranges, float softcap, bool as_bytes, Array<float, 2> out) {
  const Path& path = choose_path(path_name);
  const int dim = static_cast<int>(std::min<std::size_t>(keys.shape(1), kMostDimension));
  const int slots = static_cast<int>(std::min<std::size_t>(keys.shape(0), kMostDimension));
  require(dim > 0 && dim <= kMostHeadDim, "head_dim is out of range", dim);
  require(keys.shape(0) == values.shape(0) && values.shape(1) == keys.shape(1), "values differ from keys", values.shape(0));
  require(queries.shape(1) == keys.shape(1) && queries.shape(0) <= 256, "queries have another shape", queries.shape(0));
  require(ranges.shape(0) == queries.shape(0) && ranges.shape(1) == 2, "ranges have another shape", ranges.shape(0));
  require(out.shape(0) == queries.shape(0) && out.shape(1) == keys.shape(1), "out has another shape", out.shape(0));
  KvCache cache(1, 1, dim, std::max(slots, 1), as_bytes);
  for (int slot = 0; slot < slots; ++slot) {
    cache.write_key(path, 0, 0, slot, keys.data() + size(slot, dim));
    cache.write_value(path, 0, 0, slot, values.data() + size(slot, dim));
  }
  const int count = static_cast<int>(queries.shape(0)), stride = round_up(dim, 16);
  Floats outputs(size(count, stride));
  std::vector<Query> all(static_cast<std::size_t>(count));
  for (int q = 0; q < count; ++q) {
    const int begin = ranges.data()[2 * q], end = ranges.data()[2 * q + 1];
    require(begin >= 0 && begin < end && end <= slots, "a range outside the slots", begin);
    all[static_cast<std::size_t>(q)] = {queries.data() + size(q, dim), begin, end, outputs.data() + size(q, stride), 0, 0};
  }
  path.attend(cache.head(0, 0), all.data(), count, softcap);
  for (const Query& query : all) {
    float* row = out.data() + size(static_cast<int>(&query - all.data()), dim);
    for (int d = 0; d < dim; ++d) row[d] = query.output[d] / query.total;
  }
}

// A copy in whole lanes, the rest filled up.
Floats padded(const Array<const float, 1>& x, float filling) {
  require(x.size() > 0 && x.size() <= kMostDimension, "a row of this length", x.size());
  const int n = static_cast<int>(x.size());
  Floats out(static_cast<std::size_t>(round_up(n, 16)));
  std::copy_n(x.data(), n, out.data());
  std::fill(out.data() + n, out.data() + out.size(), filling);
  return out;
}

void rms_norm(const std::string& path, Array<const float, 1> x, Array<const float, 1> weight, float epsilon,
              Array<float, 1> out) {
  require(weight.size() == x.size() && out.size() == x.size() && x.size() <= kMostDimension, "other lengths", x.size());
  choose_path(path).rms_norm(x.data(), weight.data(), static_cast<int>(x.size()), epsilon, out.data());
}

void rotate(const std::string& path, Array<float, 1> x, Array<const float, 1> cosines, Array<const float, 1> sines) {
  require(cosines.size() == sines.size() && x.size() == 2 * sines.size() && x.size() <= kMostDimension, "other lengths",
          x.size());
  choose_path(path).rotate(x.data(), cosines.data(), sines.data(), static_cast<int>(sines.size()));
}

void gated(const std::string& path, Array<float, 1> gate, Array<const float, 1> up, bool gelu) {
  require(gate.size() == up.size(), "other lengths", up.size());
  Floats lanes = padded(Array<const float, 1>(gate), 0), others = padded(up, 0);
  choose_path(path).gated(lanes.data(), others.data(), static_cast<int>(lanes.size()), gelu);
  std::copy_n(lanes.data(), gate.size(), gate.data());
}

void exponentials(const std::string& path, Array<const float, 1> x, float shift, float divisor, Array<float, 1> out) {
  require(out.size() == x.size(), "other lengths", out.size());
  const Floats lanes = padded(x, 0);
  Floats result(lanes.size());
  choose_path(path).exponentials(lanes.data(), static_cast<int>(lanes.size()), shift, divisor, result.data());
  std::copy_n(result.data(), x.size(), out.data());
}

void softcap(const std::string& path, Array<float, 1> x, float cap) {
  Floats lanes = padded(Array<const float, 1>(x), 0);
  choose_path(path).softcap(lanes.data(), static_cast<int>(lanes.size()), cap);
  std::copy_n(lanes.data(), x.size(), x.data());
}

float log_sum_exp(const std::string& path, Array<const float, 1> x) {
  const Floats lanes = padded(x, kLowest);
  return choose_path(path).log_sum_exp(lanes.data(), static_cast<int>(lanes.size()));
}

bool finite(const std::string& path, Array<const float, 1> x) {
  require(x.size() <= kMostDimension, "a row of this length", x.size());
  return choose_path(path).finite(x.data(), static_cast<int>(x.size()));
}

// The path's conversion to fp16, and back by the plain one.
void halves(const std::string& path, Array<const float, 1> x, Array<std::uint16_t, 1> out, Array<float, 1> back) {
  require(out.size() == x.size() && back.size() == x.size(), "other lengths", out.size());
  const Floats lanes = padded(x, 0);
  Buffer<std::uint16_t> result(lanes.size());
  choose_path(path).to_half(lanes.data(), static_cast<int>(lanes.size()), result.data());
  std::copy_n(result.data(), x.size(), out.data());
  for (std::size_t i = 0; i < x.size(); ++i) back.data()[i] = half_to_float(result[i]);
}

std::vector<std::string> paths() {
  std::vector<std::string> names;
  for (const Path* path : runnable_paths()) names.emplace_back(path->name);
  return names;
}

}  // namespace

GivenTable::GivenTable(int kind, int rows, int columns, int group, Array<const std::uint8_t, 1> given_codes,
                       nb::object given_scales, nb::object given_minima)
    : codes(nb::cast(given_codes)), scales(std::move(given_scales)), minima(std::move(given_minima)) {
  require(kind >= 0 && kind <= 4, "kind is one of 0 to 4", kind);
  require(rows > 0 && rows <= kMostDimension, "rows are out of range", rows);
  require(columns > 0 && columns <= kMostDimension, "columns are out of range", columns);
  table.kind = static_cast<Kind>(kind);
  table.rows = rows;
  table.columns = columns;
  table.group = group;
  const std::size_t code_bytes = size(rows, columns) * static_cast<std::size_t>(bits_of(table.kind)) / 8;
  if (!is_quantized(table.kind)) {
    require(group == 0 && scales.is_none() && minima.is_none(), "a float matrix has no groups", group);
  } else {
    require(group == 32 || group == 64 || group == 128, "group is 32, 64 or 128", group);
    require(columns % group == 0, "groups do not divide the columns", columns);
    table.scales = bytes_of(scales, size(rows, columns / group) * 2, "scales");
    if (!minima.is_none()) table.minima = bytes_of(minima, size(rows, columns / group) * 2, "minima");
  }
  require(given_codes.size() == code_bytes, "codes want " + std::to_string(code_bytes) + " bytes", given_codes.size());
  table.codes = given_codes.data();
}

void bind_kernels(nb::module_& module) {
  nb::class_<GivenTable>(module, "Table")
      .def(nb::init<int, int, int, int, Array<const std::uint8_t, 1>, nb::object, nb::object>(), nb::arg("kind"),
           nb::arg("rows"), nb::arg("columns"), nb::arg("group"), nb::arg("codes"), nb::arg("scales").none() = nb::none(),
           nb::arg("minima").none() = nb::none());
  module.def("paths", &paths);
  module.def("matmul", &matmul, nb::arg("path"), nb::arg("table"), nb::arg("x"), nb::arg("out"));
  module.def("attend", &attend, nb::arg("path"), nb::arg("keys"), nb::arg("values"), nb::arg("queries"),
             nb::arg("ranges"), nb::arg("softcap"), nb::arg("as_bytes"), nb::arg("out"));
  module.def("rms_norm", &rms_norm, nb::arg("path"), nb::arg("x"), nb::arg("weight"), nb::arg("epsilon"), nb::arg("out"));
  module.def("rotate", &rotate, nb::arg("path"), nb::arg("x"), nb::arg("cosines"), nb::arg("sines"));
  module.def("gated", &gated, nb::arg("path"), nb::arg("gate"), nb::arg("up"), nb::arg("gelu"));
  module.def("exponentials", &exponentials, nb::arg("path"), nb::arg("x"), nb::arg("shift"), nb::arg("divisor"),
             nb::arg("out"));
  module.def("softcap", &softcap, nb::arg("path"), nb::arg("x"), nb::arg("cap"));
  module.def("log_sum_exp", &log_sum_exp, nb::arg("path"), nb::arg("x"));
  module.def("finite", &finite, nb::arg("path"), nb::arg("x"));
  module.def("halves", &halves, nb::arg("path"), nb::arg("x"), nb::arg("out"), nb::arg("back"));
}

}  // namespace edgemem
