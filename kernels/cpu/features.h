#pragma once
#include <map>
#include <string>

namespace edgemem {

// Instruction sets this processor and operating system offer, by the names Linux uses.
std::map<std::string, bool> cpu_features();

}  // namespace edgemem
