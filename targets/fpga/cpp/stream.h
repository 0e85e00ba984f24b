// Stands for the vendor's hls_stream.h when C++ is simulated without the vendor's tools: a queue without bound.
#pragma once
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace hls {
template <class T>
class stream {
  public:
    explicit stream(const char* name = "") : name(name) {}
    void write(const T& value) { values.push_back(value); }
    T read() {
        if (empty()) {
            fprintf(stderr, "stream %s: read while empty\n", name);
            exit(3);
        }
        T value = values[head++];
        if (head == values.size()) values.clear(), head = 0;
        return value;
    }
    bool empty() const { return head == values.size(); }

  private:
    const char* name;
    std::vector<T> values;
    size_t head = 0;
};
}  // namespace hls
