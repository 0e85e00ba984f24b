// Matrix-vector unit: PE filters by SIMD elements a cycle; after BEATS cycles PE sums leave as one beat.
//
// Takes the beats of a window, once for each of FOLDS groups of PE filters. WEIGHTS is a file of hexadecimal words,
// one for each beat of each group: weight s of filter p lies at bit WEIGHT_BITS*(p*SIMD + s). LANEWISE (depthwise):
// filter p takes element p of a beat instead of all of them, and SIMD is 1. WEIGHT_BITS 0: sums without weights.
// PACK: two filters share a multiplier, (w1 * 2^S + w0) * x, whose halves hold both products.
module tapeout_mac #(
    parameter BITS = 8, WEIGHT_BITS = 8, SUM_BITS = 32, PE = 1, SIMD = 1, BEATS = 1, FOLDS = 1,
    parameter LANEWISE = 0, PACK = 0, WEIGHTS = ""
) (
    input clk,
    input rst,
    input in_valid,
    output in_ready,
    input [BITS*(LANEWISE ? PE : SIMD)-1:0] in_data,
    output out_valid,
    input out_ready,
    output [SUM_BITS*PE-1:0] out_data
);
    localparam DEPTH = FOLDS * BEATS;
    localparam WB = WEIGHT_BITS ? WEIGHT_BITS : 1;
    localparam S = BITS + WEIGHT_BITS;  // bits of a product

    // Three stages: operands, products, sums. They stand still while finished sums cannot leave.
    reg [$clog2(BEATS+1)-1:0] beat;
    reg [$clog2(DEPTH+1)-1:0] place;
    reg [3:1] valid, last;
    reg [2:1] first;
    wire ending = beat == BEATS - 1;
    wire advance = !out_valid || out_ready;
    assign in_ready = advance;
    assign out_valid = valid[3] && last[3];

    always @(posedge clk)
        if (rst) begin
            beat <= 0; place <= 0; valid <= 0;
        end else if (advance) begin
            valid <= {valid[2:1], in_valid};
            if (in_valid) begin
                beat <= ending ? 0 : beat + 1;
                place <= place == DEPTH - 1 ? 0 : place + 1;
            end
        end
    always @(posedge clk)
        if (advance) begin
            first <= {first[1], beat == 0};
            last <= {last[2:1], ending};
        end

    reg [BITS*(LANEWISE ? PE : SIMD)-1:0] elements;
    wire [WB*PE*SIMD-1:0] weights;
    always @(posedge clk) if (advance) elements <= in_data;

    generate
        if (WEIGHT_BITS) begin : memory
            (* ram_style = "block" *) reg [WB*PE*SIMD-1:0] words[0:DEPTH-1];
            reg [WB*PE*SIMD-1:0] word;
            initial $readmemh(WEIGHTS, words);
            always @(posedge clk) if (advance) word <= words[place];
            assign weights = word;
        end else begin : none
            assign weights = 0;
        end
    endgenerate

    genvar p, s;
    generate
        for (p = 0; p < PE; p = p + (PACK ? 2 : 1)) begin : filter
            localparam BOTH = PACK && p + 1 < PE, PB = BOTH ? 2 * S + 1 : S;
            wire [PB*SIMD-1:0] products;
            for (s = 0; s < SIMD; s = s + 1) begin : element
                localparam I = p * SIMD + s, NEXT = BOTH ? I + SIMD : I;
                wire signed [BITS-1:0] x = elements[BITS*(LANEWISE ? p : s)+:BITS];
                wire signed [WB-1:0] w0 = weights[WB*I+:WB], w1 = weights[WB*NEXT+:WB];
                wire signed [S+WB:0] both = (w1 <<< S) + w0;
                reg signed [PB-1:0] product;
                if (!WEIGHT_BITS) begin : plain
                    always @(posedge clk) if (advance) product <= x;
                end else if (BOTH) begin : pair
                    always @(posedge clk) if (advance) product <= x * both;
                end else begin : single
                    always @(posedge clk) if (advance) product <= x * w0;
                end
                assign products[PB*s+:PB] = product;
            end
            integer i;
            reg signed [SUM_BITS-1:0] added, sum;
            always @* begin
                added = 0;
                for (i = 0; i < SIMD; i = i + 1) added = added + $signed(products[PB*i+:S]);
            end
            always @(posedge clk)
                if (advance && valid[2]) sum <= (first[2] ? {SUM_BITS{1'b0}} : sum) + added;
            assign out_data[SUM_BITS*p+:SUM_BITS] = sum;
            if (BOTH) begin : second
                // The upper half is one less where the lower is negative.
                integer j;
                reg signed [SUM_BITS-1:0] upper, upper_sum;
                always @* begin
                    upper = 0;
                    for (j = 0; j < SIMD; j = j + 1)
                        upper = upper + $signed(products[PB*j+S+:S+1]) + $signed({1'b0, products[PB*j+S-1]});
                end
                always @(posedge clk)
                    if (advance && valid[2]) upper_sum <= (first[2] ? {SUM_BITS{1'b0}} : upper_sum) + upper;
                assign out_data[SUM_BITS*(p+1)+:SUM_BITS] = upper_sum;
            end
        end
    endgenerate
endmodule
