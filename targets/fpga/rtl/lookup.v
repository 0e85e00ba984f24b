// Each element by a table of 256 words, entry i for the code i - 128.
module tapeout_lookup #(
    parameter LANES = 1, TABLE = ""
) (
    input clk,
    input rst,
    input in_valid,
    output in_ready,
    input [8*LANES-1:0] in_data,
    output reg out_valid,
    input out_ready,
    output [8*LANES-1:0] out_data
);
    assign in_ready = !out_valid || out_ready;
    always @(posedge clk)
        if (rst) out_valid <= 0;
        else if (in_ready) out_valid <= in_valid;
    genvar l;
    generate
        for (l = 0; l < LANES; l = l + 1) begin : lane
            reg [7:0] entries[0:255];
            reg [7:0] code;
            initial $readmemh(TABLE, entries);
            always @(posedge clk) if (in_ready) code <= entries[in_data[8*l+:8] ^ 8'h80];
            assign out_data[8*l+:8] = code;
        end
    endgenerate
endmodule
