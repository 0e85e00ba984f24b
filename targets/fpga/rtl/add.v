// Two streams to one: clip((a * FACTOR_A + b * FACTOR_B + OFFSET) >> SHIFT, LOW, HIGH), LANES elements at once.
//
// EVEN: ties go to the even code: bit SHIFT of the sum with START instead of OFFSET is added before the shift.
module tapeout_add #(
    parameter BITS = 8, LANES = 1, FACTOR_BITS = 16, FACTOR_A = 1, FACTOR_B = 1, SUM_BITS = 32,
    parameter [SUM_BITS-1:0] OFFSET = 0, START = 0,
    parameter SHIFT = 0, LOW = -128, HIGH = 127, EVEN = 0
) (
    input clk,
    input rst,
    input a_valid,
    output a_ready,
    input [BITS*LANES-1:0] a_data,
    input b_valid,
    output b_ready,
    input [BITS*LANES-1:0] b_data,
    output out_valid,
    input out_ready,
    output [BITS*LANES-1:0] out_data
);
    localparam STAGES = 5, SLOTS = 8, CB = 4;
    localparam signed [FACTOR_BITS:0] A = FACTOR_A, B = FACTOR_B;

    // The pipeline never stops: a pair enters only where the FIFO behind has a place for its sum.
    reg [CB-1:0] free;
    reg [STAGES:1] valid;
    wire enter = a_valid && b_valid && free != 0;
    assign a_ready = enter;
    assign b_ready = enter;
    always @(posedge clk)
        if (rst) begin
            free <= SLOTS; valid <= 0;
        end else begin
            free <= free - (enter ? 1 : 0) + (out_valid && out_ready ? 1 : 0);
            valid <= {valid[STAGES-1:1], enter};
        end

    wire [BITS*LANES-1:0] codes;
    genvar l;
    generate
        for (l = 0; l < LANES; l = l + 1) begin : lane
            reg signed [BITS-1:0] a1, b1, code5;
            reg signed [SUM_BITS-1:0] a2, b2, sum3, sum4;
            wire signed [SUM_BITS-1:0] parity = sum3 + $signed(START);
            wire tie = EVEN && parity[SHIFT];
            wire signed [SUM_BITS-1:0] shifted = sum4 >>> SHIFT;
            always @(posedge clk) begin
                a1 <= a_data[BITS*l+:BITS];
                b1 <= b_data[BITS*l+:BITS];
                a2 <= a1 * A;
                b2 <= b1 * B;
                sum3 <= a2 + b2;
                sum4 <= sum3 + $signed(OFFSET) + $signed({1'b0, tie});
                code5 <= shifted < LOW ? LOW : shifted > HIGH ? HIGH : shifted;
            end
            assign codes[BITS*l+:BITS] = code5;
        end
    endgenerate

    wire unused;
    tapeout_fifo #(.BITS(BITS * LANES), .DEPTH(SLOTS)) fifo (
        .clk(clk), .rst(rst), .in_valid(valid[STAGES]), .in_ready(unused), .in_data(codes),
        .out_valid(out_valid), .out_ready(out_ready), .out_data(out_data)
    );
endmodule
