/* Runs a model once: in.bin -> out.bin, what each kernel writes and then the outputs. Compiled with -include MODEL.h. */
#include <stdio.h>
#include <stdlib.h>
static FILE *out;
void tapeout_trace(const void *data, unsigned long bytes)
{
    fwrite(data, 1, bytes, out);
}
int main(void)
{
    void *data[model_inputs + model_outputs + 1];
    FILE *in = fopen("in.bin", "rb");
    int i;
    if (!in || !(out = fopen("out.bin", "wb"))) return 1;
    for (i = 0; i < model_inputs + model_outputs; i++) {
        if (!(data[i] = malloc(model_bytes[i] + 1))) return 2;
        if (i < model_inputs && fread(data[i], 1, model_bytes[i], in) != model_bytes[i]) return 3;
    }
    model_run((const void *const *)data, data + model_inputs);
    for (i = model_inputs; i < model_inputs + model_outputs; i++) tapeout_trace(data[i], model_bytes[i]);
    return fclose(out);
}
