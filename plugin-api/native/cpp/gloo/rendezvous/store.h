#pragma once

#include <chrono>
#include <string>
#include <vector>

namespace gloo::rendezvous {

// Only the signatures that c10d's wrapper overrides; the layout of the real class is libtorch's business.
class Store {
 public:
  virtual ~Store();
  virtual void set(const std::string& key, const std::vector<char>& data) = 0;
  virtual std::vector<char> get(const std::string& key) = 0;
  virtual void wait(const std::vector<std::string>& keys) = 0;
  virtual void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds& timeout) = 0;
};

}  // namespace gloo::rendezvous
