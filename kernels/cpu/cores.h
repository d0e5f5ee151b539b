// How many cores this process may use.
#pragma once
#include <string>

namespace gmoe {

// The least of what the affinity mask and the cgroups' CPU quotas allow, at least 1.
int usable_cores();

// Cores, rounded up, that the quotas of the process's cgroups and all above them allow; 0: no quota. `memberships` is
// the text of /proc/self/cgroup, `root` where the cgroup file systems are mounted (both versions).
int quota_cores(const std::string& memberships, const std::string& root);

}  // namespace gmoe
