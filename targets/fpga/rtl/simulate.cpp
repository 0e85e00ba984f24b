// Drives the circuit of ports.h, cycle by cycle, as Verilator has compiled it.
//
//     simulate FOLDER SAMPLES SEED
//
// Reads FOLDER/s_axis*.bin (one byte an element), writes FOLDER/m_axis*.bin, and prints cycles as one JSON object.
// SEED 0: sources always offer and sinks always take. Else both pause at random.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "Vtop.h"
#include "Vtop___024root.h"
#include "verilated.h"

struct Port {
    const char* name;
    CData *valid, *ready, *last;
    void* data;
    size_t lanes, elements;  // of a beat, of an inference
    std::vector<char> bytes;
    size_t moved = 0;
};

struct Level {
    const char* fifo;
    unsigned most;
};

#include "ports.h"

static uint64_t state;
static uint32_t random32() {
    state += 0x9E3779B97F4A7C15;
    uint64_t z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9;
    return uint32_t((z ^ (z >> 27)) * 0x94D049BB133111EB >> 32);
}

int main(int argc, char** argv) {
    if (argc != 4) return fprintf(stderr, "usage: simulate FOLDER SAMPLES SEED\n"), 2;
    const std::string folder = argv[1];
    const size_t samples = strtoull(argv[2], nullptr, 10);
    const unsigned seed = unsigned(strtoul(argv[3], nullptr, 10));
    state = seed;

    VerilatedContext context;
    context.randReset(2);  // registers start at random: reset has to be enough
    context.randSeed(int(seed % 1000) + 1);
    Vtop top(&context);
    set_seed(top, seed);
    std::vector<Port> in = sources(top), out = sinks(top);
    for (Port& p : in) {
        std::ifstream file(folder + "/" + p.name + ".bin", std::ios::binary);
        p.bytes.assign(std::istreambuf_iterator<char>(file), {});
        if (p.bytes.size() != samples * p.elements) return fprintf(stderr, "%s.bin: wrong size\n", p.name), 2;
    }

    auto edge = [&] { top.aclk = 1; top.eval(); top.aclk = 0; };
    top.aclk = 0;
    top.aresetn = 0;
    for (Port& p : in) *p.valid = 0;
    for (Port& p : out) *p.ready = 0;
    for (int i = 0; i < 4; i++) { top.eval(); edge(); }
    top.aresetn = 1;

    uint64_t cycle = 0, quiet = 0, first_done = 0, last_done = 0;
    size_t done = 0;
    unsigned pace = 0;  // how rarely ports act, of 16
    while (done < samples) {
        if (seed && cycle % 64 == 0) pace = random32() % 15;
        for (Port& p : in)
            if (!*p.valid && p.moved < p.bytes.size() && (!seed || random32() % 16 >= pace)) {
                *p.valid = 1;
                memcpy(p.data, &p.bytes[p.moved], p.lanes);
            }
        for (Port& p : out) *p.ready = !seed || random32() % 16 >= pace;
        top.eval();
        bool moved = false;
        std::vector<bool> taken;
        for (Port& p : in) taken.push_back(*p.valid && *p.ready);
        done = samples;
        for (Port& p : out) {
            if (*p.valid && *p.ready) {
                moved = true;
                const char* data = static_cast<const char*>(p.data);
                p.bytes.insert(p.bytes.end(), data, data + p.lanes);
                if (bool(*p.last) != (p.bytes.size() % p.elements == 0))
                    return fprintf(stderr, "%s: tlast at the wrong beat\n", p.name), 3;
            }
            done = std::min(done, p.bytes.size() / p.elements);
        }
        edge();
        for (size_t i = 0; i < in.size(); i++)
            if (taken[i]) {
                moved = true;
                in[i].moved += in[i].lanes;
                *in[i].valid = 0;
            }
        cycle++;
        if (done && !first_done) first_done = cycle;
        last_done = cycle;
        quiet = moved ? 0 : quiet + 1;
        if (quiet > PATIENCE) return fprintf(stderr, "no beat moved for %llu cycles\n", (unsigned long long)quiet), 3;
    }
    for (Port& p : out) std::ofstream(folder + "/" + p.name + ".bin", std::ios::binary).write(p.bytes.data(), long(p.bytes.size()));
    printf("{\"samples\": %zu, \"latency\": %llu, \"cycles\": %llu", samples, (unsigned long long)first_done,
           (unsigned long long)last_done);
    printf(", \"levels\": {");
    const char* comma = "";
    for (const Level& l : levels(top)) printf("%s\"%s\": %u", comma, l.fifo, l.most), comma = ", ";
    printf("}}\n");
}
