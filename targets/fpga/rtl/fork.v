// Every beat to each of COUNT readers, who take it when they can; the next one follows when all have it.
module tapeout_fork #(
    parameter BITS = 8, COUNT = 2
) (
    input clk,
    input rst,
    input in_valid,
    output in_ready,
    input [BITS-1:0] in_data,
    output [COUNT-1:0] out_valid,
    input [COUNT-1:0] out_ready,
    output [BITS*COUNT-1:0] out_data
);
    reg [COUNT-1:0] taken;
    assign out_valid = in_valid ? ~taken : {COUNT{1'b0}};
    assign in_ready = &(taken | out_ready);
    assign out_data = {COUNT{in_data}};
    always @(posedge clk)
        if (rst) taken <= 0;
        else taken <= in_valid && in_ready ? {COUNT{1'b0}} : taken | (out_valid & out_ready);
endmodule
