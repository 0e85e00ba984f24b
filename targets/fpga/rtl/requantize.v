// Sums to codes, LANES at once: clip((sum + bias) * multiplier + offset) >> SHIFT, LOW, HIGH), by channel.
//
// WORDS is a file of GROUPS hexadecimal words, one for each beat of a pixel; lane l's part holds from its lowest bit
// on: bias, multiplier, offset and, where there are TABLES, the number of its channel's table plus one, or zero.
// POWERS: the multiplier's field is an exponent of two. EVEN: ties go to the even code, as offset is half - 1.
// A channel with a table has a code that is one above its guess where the sum reaches the entry for this guess:
// entry i of table t, for the guess LOW + i, is word t * 2^BITS + i of file ENTRIES.
module tapeout_requantize #(
    parameter SUM_BITS = 32, LANES = 1, GROUPS = 1, BIAS_BITS = 32, MULTIPLIER_BITS = 24, OFFSET_BITS = 48,
    parameter TOTAL_BITS = 56, SHIFT = 0, LOW = -128, HIGH = 127, BITS = 8, POWERS = 0, EVEN = 0,
    parameter TABLES = 0, WORDS = "", ENTRIES = ""
) (
    input clk,
    input rst,
    input in_valid,
    output in_ready,
    input [SUM_BITS*LANES-1:0] in_data,
    output out_valid,
    input out_ready,
    output [BITS*LANES-1:0] out_data
);
    localparam IB = TABLES ? $clog2(TABLES + 1) : 0;
    // A hard multiplier takes 18 by 25 signed bits: a multiplier's parts have 17 of them, or 24 beside a short sum.
    localparam PART = SUM_BITS <= 18 ? 24 : 17, PARTS = (MULTIPLIER_BITS + PART - 1) / PART;
    localparam WB = BIAS_BITS + MULTIPLIER_BITS + OFFSET_BITS + IB;
    localparam STAGES = TABLES ? 8 : 6, SLOTS = 16, CB = 5;

    // The pipeline never stops: a sum enters only where the FIFO behind has a place for its code.
    reg [CB-1:0] free;
    reg [STAGES:1] valid;
    wire enter = in_valid && in_ready;
    assign in_ready = free != 0;
    always @(posedge clk)
        if (rst) begin
            free <= SLOTS; valid <= 0;
        end else begin
            free <= free - (enter ? 1 : 0) + (out_valid && out_ready ? 1 : 0);
            valid <= {valid[STAGES-1:1], enter};
        end

    reg [$clog2(GROUPS+1)-1:0] group;
    reg [WB*LANES-1:0] words[0:GROUPS-1];
    reg [WB*LANES-1:0] word;
    reg [SUM_BITS*LANES-1:0] sums;
    initial $readmemh(WORDS, words);
    always @(posedge clk)
        if (rst) group <= 0;
        else if (enter) group <= group == GROUPS - 1 ? 0 : group + 1;
    always @(posedge clk) begin
        word <= words[group];
        sums <= in_data;
    end

    wire [BITS*LANES-1:0] codes;
    genvar l;
    generate
        for (l = 0; l < LANES; l = l + 1) begin : lane
            wire [WB-1:0] fields = word[WB*l+:WB];
            wire signed [SUM_BITS-1:0] sum1 = sums[SUM_BITS*l+:SUM_BITS];
            wire signed [BIAS_BITS-1:0] bias = fields[0+:BIAS_BITS];
            reg signed [SUM_BITS-1:0] sum2;
            reg [PARTS*PART-1:0] multiplier2;
            reg signed [OFFSET_BITS-1:0] offset2, offset3, offset4;
            wire signed [TOTAL_BITS-1:0] scaled3;
            reg signed [TOTAL_BITS-1:0] scaled4, total5;
            wire tie = EVEN && scaled4[SHIFT];
            wire signed [TOTAL_BITS-1:0] shifted = total5 >>> SHIFT;
            reg signed [BITS-1:0] code6;
            always @(posedge clk) begin
                sum2 <= sum1 + bias;
                multiplier2 <= fields[BIAS_BITS+:MULTIPLIER_BITS];
                {offset2, offset3, offset4} <= {fields[BIAS_BITS+MULTIPLIER_BITS+:OFFSET_BITS], offset2, offset3};
                scaled4 <= scaled3;
                total5 <= scaled4 + offset4 + $signed({1'b0, tie});
                code6 <= shifted < LOW ? LOW : shifted > HIGH ? HIGH : shifted;
            end
            if (POWERS) begin : shifter
                wire signed [TOTAL_BITS-1:0] wide = sum2;
                reg signed [TOTAL_BITS-1:0] moved;
                always @(posedge clk) moved <= wide <<< multiplier2;
                assign scaled3 = moved;
            end else begin : multiplier
                reg signed [SUM_BITS+PART:0] products[0:PARTS-1];
                reg signed [TOTAL_BITS-1:0] added;
                integer i;
                always @(posedge clk)
                    for (i = 0; i < PARTS; i = i + 1)
                        products[i] <= sum2 * $signed({1'b0, multiplier2[PART*i+:PART]});
                always @* begin
                    added = 0;
                    for (i = 0; i < PARTS; i = i + 1) added = added + (products[i] <<< (PART * i));
                end
                assign scaled3 = added;
            end
            if (TABLES) begin : table_lookup
                (* ram_style = "block" *) reg [SUM_BITS-1:0] entries[0:(TABLES<<BITS)-1];
                initial $readmemh(ENTRIES, entries);
                reg [IB-1:0] number2, number3, number4, number5, number6, number7;
                // Yosys 0.23 moves a register into the multiplier behind it although others read it: `keep` forbids.
                (* keep *) reg signed [SUM_BITS-1:0] kept2;
                reg signed [SUM_BITS-1:0] sum3, sum4, sum5, sum6, sum7, entry7;
                reg signed [BITS-1:0] code7, code8;
                wire [BITS-1:0] step = code6 - LOW;
                wire [IB-1:0] table_index = number6 - 1;
                always @(posedge clk) begin
                    {number2, number3, number4} <= {fields[WB-1-:IB], number2, number3};
                    {number5, number6, number7} <= {number4, number5, number6};
                    kept2 <= sum1 + bias;
                    {sum3, sum4, sum5, sum6, sum7} <= {kept2, sum3, sum4, sum5, sum6};
                    if (valid[6]) entry7 <= entries[{table_index, step}];
                    code7 <= code6;
                    code8 <= code7 + (number7 != 0 && code7 < HIGH && sum7 >= entry7 ? 1 : 0);
                end
                assign codes[BITS*l+:BITS] = code8;
            end else begin : line_only
                assign codes[BITS*l+:BITS] = code6;
            end
        end
    endgenerate

    wire unused;
    tapeout_fifo #(.BITS(BITS * LANES), .DEPTH(SLOTS)) fifo (
        .clk(clk), .rst(rst), .in_valid(valid[STAGES]), .in_ready(unused), .in_data(codes),
        .out_valid(out_valid), .out_ready(out_ready), .out_data(out_data)
    );
endmodule
