// What the testbench reads and writes: files of codes, one byte an element.
#pragma once
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "kernels.h"

namespace tapeout {
template <int LANES>
class File {
  public:
    File() = default;
    explicit File(const std::string& path) {
        std::ifstream file(path, std::ios::binary);
        bytes.assign(std::istreambuf_iterator<char>(file), {});
    }
    void give(Codes<LANES>& stream, long beats) {
        for (long i = 0; i < beats; i++) {
            Beat<Code, LANES> beat;
            for (int l = 0; l < LANES; l++) beat.e[l] = bytes.at(place++);
            stream.write(beat);
        }
    }
    void take(Codes<LANES>& stream, long beats) {
        for (long i = 0; i < beats; i++) {
            const auto beat = stream.read();
            for (int l = 0; l < LANES; l++) bytes.push_back(beat.e[l]);
        }
    }
    void save(const std::string& path) const {
        std::ofstream(path, std::ios::binary).write(bytes.data(), long(bytes.size()));
    }

  private:
    std::vector<char> bytes;
    size_t place = 0;
};
}  // namespace tapeout
