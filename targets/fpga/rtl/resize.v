// Beats of IN elements to beats of OUT elements, where one divides the other. Equal: a wire.
module tapeout_resize #(
    parameter BITS = 8, IN = 1, OUT = 1
) (
    input clk,
    input rst,
    input in_valid,
    output in_ready,
    input [BITS*IN-1:0] in_data,
    output out_valid,
    input out_ready,
    output [BITS*OUT-1:0] out_data
);
    generate
        if (IN == OUT) begin : same
            assign in_ready = out_ready;
            assign out_valid = in_valid;
            assign out_data = in_data;
        end else if (IN < OUT) begin : wider
            localparam PARTS = OUT / IN, CB = $clog2(PARTS + 1);
            reg [CB-1:0] parts;
            reg [BITS*OUT-1:0] word;
            wire full = parts == PARTS;
            assign in_ready = !full || out_ready;
            assign out_valid = full;
            assign out_data = word;
            wire write = in_valid && in_ready;
            always @(posedge clk) if (write) word <= {in_data, word[BITS*OUT-1:BITS*IN]};
            always @(posedge clk)
                if (rst) parts <= 0;
                else parts <= (full && out_ready ? 0 : parts) + (write ? 1 : 0);
        end else begin : narrower
            localparam PARTS = IN / OUT, CB = $clog2(PARTS + 1);
            reg [CB-1:0] parts;  // parts of `word` that have not left
            reg low;  // at most one of them; a register, so that each bit of `word` is behind one small multiplexer
            reg [BITS*IN-1:0] word;
            assign in_ready = low && (parts == 0 || out_ready);
            assign out_valid = parts != 0;
            assign out_data = word[BITS*OUT-1:0];
            wire write = in_valid && in_ready;
            wire [CB-1:0] next = write ? PARTS : out_valid && out_ready ? parts - 1 : parts;
            always @(posedge clk)
                if (low ? in_ready : out_ready)
                    word <= low ? in_data : {{BITS * OUT{1'b0}}, word[BITS*IN-1:BITS*OUT]};
            always @(posedge clk)
                if (rst) begin
                    parts <= 0; low <= 1;
                end else begin
                    parts <= next; low <= next <= 1;
                end
        end
    endgenerate
endmodule
