// The border of the circuit: marks the last of BEATS beats of each inference.
module tapeout_frame #(
    parameter BITS = 8, BEATS = 1
) (
    input clk,
    input rst,
    input in_valid,
    output in_ready,
    input [BITS-1:0] in_data,
    output out_valid,
    input out_ready,
    output [BITS-1:0] out_data,
    output out_last
);
    reg [$clog2(BEATS+1)-1:0] beat;
    assign in_ready = out_ready;
    assign out_valid = in_valid;
    assign out_data = in_data;
    assign out_last = beat == BEATS - 1;
    always @(posedge clk)
        if (rst) beat <= 0;
        else if (in_valid && out_ready) beat <= out_last ? 0 : beat + 1;
endmodule
