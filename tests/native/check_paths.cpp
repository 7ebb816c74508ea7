// Every path that runs here against the plain one, which the Python tests hold against NumPy. It needs no Python, so that
// it can be built for another processor and run under an emulator: `make native-arm`.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "../../kernels/cpu/half.h"
#include "../../kernels/cpu/kv_cache.h"
#include "../../kernels/cpu/pack.h"
#include "../../kernels/cpu/path.h"

using namespace edgemem;

namespace {

std::mt19937 source(7);

int between(int low, int high) { return std::uniform_int_distribution<int>(low, high)(source); }
float normal() { return std::normal_distribution<float>()(source); }

std::vector<float> normals(std::size_t count, float deviation = 1.0f) {
  std::vector<float> out(count);
  for (float& value : out) value = deviation * normal();
  return out;
}

void compare(const char* what, const Path& path, const std::vector<float>& got, const std::vector<float>& wanted,
             float tolerance) {
  for (std::size_t i = 0; i < wanted.size(); ++i)
    if (!(std::fabs(got[i] - wanted[i]) <= tolerance)) {
      std::fprintf(stderr, "%s of path %s: %g at %zu, wanted %g\n", what, path.name, static_cast<double>(got[i]), i,
                   static_cast<double>(wanted[i]));
      std::exit(1);
    }
}

struct Matrix {
  std::vector<std::uint8_t> codes, scales, minima;
  Table table;
  Buffer<std::uint8_t> block;
  Packed packed;
};

std::vector<std::uint8_t> halves_of(std::size_t count, float deviation) {
  std::vector<std::uint8_t> out(2 * count);
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint16_t half = float_to_half(deviation * (0.5f + std::fabs(normal())));
    out[2 * i] = static_cast<std::uint8_t>(half & 255);
    out[2 * i + 1] = static_cast<std::uint8_t>(half >> 8);
  }
  return out;
}

Matrix some_matrix() {
  Matrix m;
  const Kind kind = static_cast<Kind>(between(0, 4));
  const int group = is_quantized(kind) ? 32 << between(0, 2) : 0;
  m.table.kind = kind;
  m.table.rows = between(1, 70);
  m.table.columns = group ? group * between(1, 5) : between(1, 90);
  m.table.group = group;
  m.codes.resize(size(m.table.rows, m.table.columns) * static_cast<std::size_t>(bits_of(kind)) / 8);
  if (is_quantized(kind)) {
    for (std::uint8_t& code : m.codes) code = static_cast<std::uint8_t>(between(0, 255));
    const std::size_t groups = size(m.table.rows, m.table.groups());
    m.scales = halves_of(groups, 0.01f);
    m.table.scales = m.scales.data();
    m.minima = halves_of(groups, -0.05f);
    if (between(0, 1)) m.table.minima = m.minima.data();
  } else if (kind == Kind::kFloat) {
    const std::vector<float> values = normals(m.codes.size() / 4, 0.1f);
    std::memcpy(m.codes.data(), values.data(), m.codes.size());
  } else {
    m.codes = halves_of(m.codes.size() / 2, 0.1f);  // bits that are small as bf16 too
  }
  m.table.codes = m.codes.data();
  m.packed = m.table.packed();
  m.block = Buffer<std::uint8_t>(m.packed.bytes());
  pack(m.table, m.block.data(), 0, m.packed.tiles());
  m.packed.data = m.block.data();
  return m;
}

std::vector<float> product(const Path& path, const Packed& w, const std::vector<float>& x, int tokens) {
  const std::size_t groups = std::max<std::size_t>(1, size(tokens, w.groups()));
  std::vector<std::int8_t> codes(x.size());
  std::vector<float> scales(groups), sums(groups), offsets(groups), out(size(tokens, w.tiles() * kTileRows));
  const Activation all = {x.data(), {codes.data(), scales.data(), sums.data(), offsets.data()}};
  for (int t = 0; t < tokens && is_quantized(w.kind); ++t) {
    const Activation row = all.from(t, w);
    path.quantize(row.values, w.columns, w.group, centre_of(w.kind), row.quantized);
  }
  path.matmul(w, all, tokens, out.data(), size(w.tiles(), kTileRows), 0, w.tiles());
  return out;
}

void check_products(const Path& path) {
  for (int round = 0; round < 150; ++round) {
    const Matrix m = some_matrix();
    const int tokens = between(1, 20);
    const std::vector<float> x = normals(size(tokens, m.table.columns));
    const std::vector<float> wanted = product(*plain_path(), m.packed, x, tokens);
    float greatest = 1e-3f;
    for (float value : wanted) greatest = std::max(greatest, std::fabs(value));
    compare("a product", path, product(path, m.packed, x, tokens), wanted, 2e-5f * greatest);
  }
}

std::vector<float> attention(const Path& path, const KvCache& cache, std::vector<Query> queries, int stride, float cap) {
  std::vector<float> out(queries.size() * static_cast<std::size_t>(stride));
  for (std::size_t q = 0; q < queries.size(); ++q) queries[q].output = out.data() + q * static_cast<std::size_t>(stride);
  path.attend(cache.head(0, 0), queries.data(), static_cast<int>(queries.size()), cap);
  for (std::size_t q = 0; q < queries.size(); ++q)
    for (int d = 0; d < stride; ++d) queries[q].output[d] /= queries[q].total;
  return out;
}

void check_attention(const Path& path) {
  for (int round = 0; round < 100; ++round) {
    const int dim = between(1, 128), slots = between(1, 90), count = between(1, 30), stride = round_up(dim, 16);
    KvCache cache(1, 1, dim, slots, between(0, 1) == 1);
    for (int slot = 0; slot < slots; ++slot) {
      cache.write_key(path, 0, 0, slot, normals(static_cast<std::size_t>(dim)).data());
      cache.write_value(path, 0, 0, slot, normals(static_cast<std::size_t>(dim)).data());
    }
    const std::vector<float> vectors = normals(size(count, dim), 2.0f / std::sqrt(static_cast<float>(dim)));
    std::vector<Query> queries;
    for (int q = 0; q < count; ++q) {
      const int begin = between(0, slots - 1);
      queries.push_back({vectors.data() + size(q, dim), begin, between(begin + 1, slots), nullptr, 0, 0});
    }
    const float cap = between(0, 1) ? 5.0f : 0.0f;
    compare("attention", path, attention(path, cache, queries, stride, cap),
            attention(*plain_path(), cache, queries, stride, cap), 2e-5f);
  }
}

void check_rows(const Path& path) {
  const Path& plain = *plain_path();
  for (int round = 0; round < 100; ++round) {
    const int n = 16 * between(1, 20), odd = between(1, n);
    const std::size_t length = static_cast<std::size_t>(n);
    const std::vector<float> x = normals(length, 3.0f), weight = normals(length);
    std::vector<float> got(length), wanted(length);
    path.rms_norm(x.data(), weight.data(), odd, 1e-5f, got.data());
    plain.rms_norm(x.data(), weight.data(), odd, 1e-5f, wanted.data());
    compare("a norm", path, got, wanted, 1e-5f);
    got = wanted = x;
    path.rotate(got.data(), weight.data(), weight.data() + n / 2, n / 2);
    plain.rotate(wanted.data(), weight.data(), weight.data() + n / 2, n / 2);
    compare("a rotation", path, got, wanted, 1e-5f);
    got = wanted = x;
    path.gated(got.data(), weight.data(), n, round % 2 == 1);
    plain.gated(wanted.data(), weight.data(), n, round % 2 == 1);
    compare("a gate", path, got, wanted, 1e-5f);
    got = wanted = x;
    path.softcap(got.data(), n, 2.0f);
    plain.softcap(wanted.data(), n, 2.0f);
    compare("a softcap", path, got, wanted, 1e-5f);
    const float top = plain.greatest(x.data(), n);
    compare("the greatest", path, {path.greatest(x.data(), n)}, {top}, 0.0f);
    compare("a sum", path, {path.log_sum_exp(x.data(), n)}, {plain.log_sum_exp(x.data(), n)}, 1e-5f);
    path.exponentials(x.data(), n, top, 0.7f, got.data());
    plain.exponentials(x.data(), n, top, 0.7f, wanted.data());
    compare("an exponential", path, got, wanted, 1e-6f);
    std::vector<std::uint16_t> ours(length), theirs(length);
    path.to_half(x.data(), n, ours.data());
    plain.to_half(x.data(), n, theirs.data());
    if (ours != theirs) compare("halves", path, {1.0f}, {0.0f}, 0.0f);
    got = x;
    got[static_cast<std::size_t>(odd - 1)] = round % 2 ? std::nanf("") : HUGE_VALF;
    if (path.finite(got.data(), odd) || !path.finite(x.data(), odd)) compare("finite", path, {1.0f}, {0.0f}, 0.0f);
  }
}

}  // namespace

int main() {
  for (const Path* path : runnable_paths()) {
    check_products(*path);
    check_attention(*path);
    check_rows(*path);
    std::printf("path %s agrees\n", path->name);
  }
}
