#include "cores.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace gmoe {
namespace {

double read_number(const std::string& path) {
  std::ifstream file(path);
  double value;
  return file >> value ? value : -1;
}

// Cores that one group's own files allow; 0: no quota.
double own_quota(const std::string& folder, bool second_version) {
  double quota = -1, period = -1;
  if (second_version) {
    std::ifstream file(folder + "/cpu.max");
    std::string first;
    if (file >> first >> period && first != "max") quota = std::atof(first.c_str());
  } else {
    quota = read_number(folder + "/cpu.cfs_quota_us");
    period = read_number(folder + "/cpu.cfs_period_us");
  }
  return quota > 0 && period > 0 ? quota / period : 0;
}

bool names_cpu(const std::string& controllers) {
  std::istringstream names(controllers);
  for (std::string name; std::getline(names, name, ',');)
    if (name == "cpu") return true;
  return false;
}

}  // namespace

int quota_cores(const std::string& memberships, const std::string& root) {
  double least = 0;
  std::istringstream lines(memberships);
  for (std::string line; std::getline(lines, line);) {  // id:controllers:path
    size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    std::string controllers = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
    const bool second_version = controllers.empty();
    if (!second_version && !names_cpu(controllers)) continue;
    for (const std::string& mount : {root, root + "/" + (second_version ? "unified" : "cpu"), root + "/" + controllers})
      for (std::string group = path == "/" ? "" : path;; group.resize(group.rfind('/'))) {
        double cores = own_quota(mount + group, second_version);
        if (cores > 0 && (least == 0 || cores < least)) least = cores;
        if (group.find('/') == std::string::npos) break;
      }
  }
  return least == 0 ? 0 : std::max(1, int(least) + (least > int(least) ? 1 : 0));
}

int usable_cores() {
  static const int quota = [] {
    std::ifstream file("/proc/self/cgroup");
    std::ostringstream text;
    text << file.rdbuf();
    return quota_cores(text.str(), "/sys/fs/cgroup");
  }();
  int cores = std::max(1, int(std::thread::hardware_concurrency()));
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
#elif defined(__APPLE__)  // the fast ones: a task that a slow core takes keeps the others waiting
  int fast = 0;
  size_t size = sizeof fast;
  if (sysctlbyname("hw.perflevel0.physicalcpu", &fast, &size, nullptr, 0) == 0 && fast > 0) cores = fast;
#endif
  return quota > 0 ? std::min(cores, quota) : cores;
}

}  // namespace gmoe
