// The sums of all PIXELS of an image, channel by channel; a pixel is GROUPS beats of LANES elements.
module tapeout_channel_sum #(
    parameter BITS = 8, LANES = 1, GROUPS = 1, PIXELS = 1, SUM_BITS = 16
) (
    input clk,
    input rst,
    input in_valid,
    output in_ready,
    input [BITS*LANES-1:0] in_data,
    output reg out_valid,
    input out_ready,
    output reg [SUM_BITS*LANES-1:0] out_data
);
    (* ram_style = "distributed" *) reg [SUM_BITS*LANES-1:0] sums[0:GROUPS-1];
    reg [$clog2(GROUPS+1)-1:0] group;
    reg [$clog2(PIXELS+1)-1:0] pixel;
    wire group_last = group == GROUPS - 1, pixel_last = pixel == PIXELS - 1;
    wire [SUM_BITS*LANES-1:0] held = sums[group];
    wire [SUM_BITS*LANES-1:0] summed;
    assign in_ready = !out_valid || out_ready;
    wire take = in_valid && in_ready;
    always @(posedge clk) if (take) sums[group] <= summed;
    always @(posedge clk) if (take) out_data <= summed;
    always @(posedge clk)
        if (rst) begin
            group <= 0; pixel <= 0; out_valid <= 0;
        end else begin
            if (take) group <= group_last ? 0 : group + 1;
            if (take && group_last) pixel <= pixel_last ? 0 : pixel + 1;
            out_valid <= in_ready ? in_valid && pixel_last : 1'b1;
        end
    genvar l;
    generate
        for (l = 0; l < LANES; l = l + 1) begin : lane
            wire signed [BITS-1:0] x = in_data[BITS*l+:BITS];
            wire signed [SUM_BITS-1:0] sum = pixel == 0 ? 0 : held[SUM_BITS*l+:SUM_BITS];
            assign summed[SUM_BITS*l+:SUM_BITS] = sum + x;
        end
    endgenerate
endmodule
