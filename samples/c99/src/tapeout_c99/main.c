/* Runs a model once: in.bin -> out.bin, and what each kernel writes -> trace.bin. Compiled with -include MODEL.h. */
#include <stdio.h>
#include <stdlib.h>
static FILE *trace;
void tapeout_trace(const void *data, long bytes)
{
    fwrite(data, 1, (size_t)bytes, trace);
}
int main(void)
{
    const void *inputs[model_inputs + 1];
    void *outputs[model_outputs + 1], *data;
    FILE *in = fopen("in.bin", "rb"), *out = fopen("out.bin", "wb");
    int i;
    trace = fopen("trace.bin", "wb");
    for (i = 0; in && i < model_inputs; i++) {
        inputs[i] = data = malloc(model_bytes[i] + 1);
        if (!data || fread(data, 1, model_bytes[i], in) != model_bytes[i]) return 1;
    }
    for (i = 0; i < model_outputs; i++) if (!(outputs[i] = malloc(model_bytes[model_inputs + i] + 1))) return 2;
    if (!in || !out || !trace) return 3;
    model_run(inputs, outputs);
    for (i = 0; i < model_outputs; i++) fwrite(outputs[i], 1, model_bytes[model_inputs + i], out);
    return fclose(out) || fclose(trace);
}
