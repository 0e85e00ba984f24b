/* Reads a plan as docs/nvidia-plan.md has it, and prints what it holds: that C can. No library but the standard one. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { char name[4]; uint32_t record; const uint8_t *data; uint64_t bytes; } Section;

static uint8_t *file;
static Section sections[32];
static uint32_t count;

static uint32_t u32(const uint8_t *p) { return p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24; }
static uint64_t u64(const uint8_t *p) { return u32(p) | (uint64_t)u32(p + 4) << 32; }

static void fail(const char *why) { fprintf(stderr, "%s\n", why); exit(1); }

static const Section *section(const char *name) {
    for (uint32_t i = 0; i < count; i++)
        if (!memcmp(sections[i].name, name, 4)) return &sections[i];
    fail("a section is missing");
    return NULL;
}

/* The fields of record `index` begin here. */
static const uint8_t *record(const char *name, uint64_t index) {
    const Section *s = section(name);
    if ((index + 1) * s->record > s->bytes) fail("a record is missing");
    return s->data + index * s->record;
}

static void string(uint32_t first, uint32_t size) {
    if (size) record("STRS", (uint64_t)first + size - 1);
    printf("%.*s", (int)size, (const char *)section("STRS")->data + first);
}

/* The value of an expression for these sizes of the symbols. */
static int64_t value(uint32_t expression, const int64_t *sizes) {
    const uint8_t *range = record("EXPR", expression);
    int64_t stack[64];
    int top = 0;
    for (uint32_t i = 0; i < u32(range + 4); i++) {
        int64_t word = (int64_t)u64(record("CODE", u32(range) + i)), operand = word >> 8;
        int operation = word & 0xff;
        if (operation <= 1) { stack[top++] = operation ? sizes[operand] : operand; continue; }
        int64_t b = stack[--top], a = stack[--top], q;
        switch (operation) {
            case 2: q = a + b; break;
            case 3: q = a - b; break;
            case 4: q = a * b; break;
            case 5: q = a / b - (a % b < 0); break;
            case 6: q = a / b + (a % b > 0); break;
            case 7: q = a < b ? a : b; break;
            default: q = a > b ? a : b;
        }
        stack[top++] = q;
    }
    return stack[0];
}

int main(int argc, char **argv) {
    FILE *stream = argc > 1 ? fopen(argv[1], "rb") : NULL;
    if (!stream) fail("usage: reader PLAN SIZE...");
    fseek(stream, 0, SEEK_END);
    long size = ftell(stream);
    rewind(stream);
    file = malloc((size_t)size + 1);
    if (fread(file, 1, (size_t)size, stream) != (size_t)size) fail("cannot read");
    fclose(stream);
    if (size < 64 || memcmp(file, "TAPEPLAN", 8)) fail("no plan");
    if (u32(file + 40) != 1) fail("another version");
    if (u64(file + 48) != (uint64_t)size) fail("cut short");
    count = u32(file + 44);
    if (count > 32) fail("too many sections");
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *entry = file + 64 + 24 * i;
        memcpy(sections[i].name, entry, 4);
        sections[i].record = u32(entry + 4);
        sections[i].data = file + u64(entry + 8);
        sections[i].bytes = u64(entry + 16);
        if (u64(entry + 8) + sections[i].bytes > (uint64_t)size) fail("a section leaves the file");
    }
    int64_t sizes[16] = {0};
    for (int i = 2; i < argc && i < 18; i++) sizes[i - 2] = atoll(argv[i]);
    for (uint64_t i = 0; i < section("TENS")->bytes / section("TENS")->record; i++) {
        const uint8_t *tensor = record("TENS", i);
        printf("tensor ");
        string(u32(tensor), u32(tensor + 4));
        for (uint32_t d = 0; d < u32(tensor + 20); d++)
            printf(" %" PRId64, value(u32(record("LIST", u32(tensor + 16) + d)), sizes));
        if (u32(tensor + 28) != 0xffffffff) {
            const uint8_t *weight = record("WGHT", u32(tensor + 28));
            float first;
            memcpy(&first, section("WGTS")->data + u64(weight + 24), 4);
            printf(" = %.6f ...", first);
        }
        printf("\n");
    }
    for (uint64_t i = 0; i < section("LAUN")->bytes / section("LAUN")->record; i++) {
        const uint8_t *launch = record("LAUN", i);
        printf("launch ");
        string(u32(launch), u32(launch + 4));
        for (int axis = 0; axis < 3; axis++) printf(" %" PRId64, value(u32(launch + 24 + 4 * axis), sizes));
        for (uint32_t s = 0; s < u32(launch + 68); s += 2) {
            printf(" ");
            string(u32(record("LIST", u32(launch + 64) + s)), u32(record("LIST", u32(launch + 64) + s + 1)));
        }
        printf("\n");
    }
    for (uint64_t i = 0; i < section("KERN")->bytes / section("KERN")->record; i++) {
        const uint8_t *kernel = record("KERN", i);
        printf("kernel ");
        string(u32(kernel + 8), u32(kernel + 12));
        printf(" sm_%u warps %u registers %u\n", u32(kernel + 4), u32(kernel + 20), u32(kernel + 24));
    }
    return 0;
}
