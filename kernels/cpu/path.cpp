#include "path.h"

#include <initializer_list>
#include <stdexcept>

#include "features.h"

namespace edgemem {
namespace {

bool has_all(std::initializer_list<const char*> names) {
  const std::map<std::string, bool> features = cpu_features();
  for (const char* name : names) {
    const auto found = features.find(name);
    if (found == features.end() || !found->second) return false;
  }
  return true;
}

bool runs_here(const Path* path) {
  if (path == nullptr) return false;
  if (path == avx512_path()) return has_all({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"});
  if (path == avx2_path()) return has_all({"avx2", "fma", "f16c"});
  if (path == neon_path()) return has_all({"asimd", "asimddp"});
  return true;
}

}  // namespace

std::vector<const Path*> runnable_paths() {
  std::vector<const Path*> out;
  for (const Path* path : {avx512_path(), avx2_path(), neon_path(), plain_path()})
    if (runs_here(path)) out.push_back(path);
  return out;
}

const Path& choose_path(const std::string& name) {
  std::string known = "auto";
  for (const Path* path : runnable_paths()) {
    if (name == "auto" || name == path->name) return *path;
    known += std::string(", ") + path->name;
  }
  throw std::invalid_argument("this processor has no path \"" + name + "\"; it has " + known);
}

}  // namespace edgemem
