// First in, first out: DEPTH beats in a memory and one in the output register.
module tapeout_fifo #(
    parameter BITS = 8, DEPTH = 2
) (
    input clk,
    input rst,
    input in_valid,
    output in_ready,
    input [BITS-1:0] in_data,
    output reg out_valid,
    input out_ready,
    output reg [BITS-1:0] out_data
);
    localparam AB = $clog2(DEPTH + 1);
    reg [BITS-1:0] words[0:DEPTH-1];
    reg [AB-1:0] head, tail, level;
    wire write = in_valid && in_ready;
    wire read = level != 0 && (!out_valid || out_ready);
    assign in_ready = level != DEPTH;

    always @(posedge clk) if (write) words[tail] <= in_data;
    always @(posedge clk) if (read) out_data <= words[head];
    always @(posedge clk)
        if (rst) begin
            head <= 0; tail <= 0; level <= 0; out_valid <= 0;
        end else begin
            if (write) tail <= tail == DEPTH - 1 ? 0 : tail + 1;
            if (read) head <= head == DEPTH - 1 ? 0 : head + 1;
            level <= level + (write ? 1 : 0) - (read ? 1 : 0);
            out_valid <= read || (out_valid && !out_ready);
        end

`ifdef TAPEOUT_TRACE
    // The most beats that were held at once: how deep the FIFO needs to be.
    reg [31:0] most /* verilator public_flat_rd */;
    always @(posedge clk)
        if (rst) most <= 0;
        else if (level + out_valid > most) most <= level + out_valid;
`endif
endmodule
