// For simulation only: holds beats back at random, both ways, by a generator that starts at SEED and `seed`.
module tapeout_stall #(
    parameter BITS = 8, SEED = 1
) (
    input clk,
    input rst,
    input [31:0] seed,
    input in_valid,
    output in_ready,
    input [BITS-1:0] in_data,
    output out_valid,
    input out_ready,
    output [BITS-1:0] out_data
);
    // A beat that was offered stays offered: `open` may fall only once it is taken.
    reg [31:0] state;
    reg open;
    wire [31:0] s1 = state ^ (state << 13), s2 = s1 ^ (s1 >> 17), next = s2 ^ (s2 << 5);
    assign out_valid = in_valid && open;
    assign in_ready = out_ready && open;
    assign out_data = in_data;
    always @(posedge clk)
        if (rst) begin
            state <= (seed ^ SEED) * 32'h9E3779B1 | 1; open <= 0;
        end else begin
            state <= next;
            // Bursts: bits that stay for a while choose how often the rest lets a beat through.
            if (!out_valid || out_ready) open <= next[3:0] >= {seed[1:0], 2'b00};
        end
endmodule
