// The largest of BEATS beats, element by element: what a max pool makes of a window.
module tapeout_max #(
    parameter BITS = 8, LANES = 1, BEATS = 1
) (
    input clk,
    input rst,
    input in_valid,
    output in_ready,
    input [BITS*LANES-1:0] in_data,
    output reg out_valid,
    input out_ready,
    output [BITS*LANES-1:0] out_data
);
    reg [$clog2(BEATS+1)-1:0] beat;
    wire last = beat == BEATS - 1;
    assign in_ready = !out_valid || out_ready;
    wire take = in_valid && in_ready;
    always @(posedge clk)
        if (rst) begin
            beat <= 0; out_valid <= 0;
        end else begin
            if (take) beat <= last ? 0 : beat + 1;
            out_valid <= in_ready ? in_valid && last : 1'b1;
        end
    genvar l;
    generate
        for (l = 0; l < LANES; l = l + 1) begin : lane
            wire signed [BITS-1:0] x = in_data[BITS*l+:BITS];
            reg signed [BITS-1:0] largest;
            always @(posedge clk) if (take && (beat == 0 || x > largest)) largest <= x;
            assign out_data[BITS*l+:BITS] = largest;
        end
    endgenerate
endmodule
