// Which planted bug is active: 0 for none.  Production code never includes this header; the
// planted copies of it, made by planted_bugs.cmake, do.
#pragma once

namespace dsa::sim {

inline int& PlantedBug() {
  static int bug = 0;
  return bug;
}

inline bool Planted(int bug) {
  return PlantedBug() == bug;
}

}  // namespace dsa::sim
