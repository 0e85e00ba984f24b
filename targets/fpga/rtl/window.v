// Sliding window: takes an image as a stream of pixels and gives, for each output pixel, the beats of its window.
//
// A beat is LANES elements of BITS bits; a pixel is GROUPS beats; pixels come row by row. The last ROWS rows lie in
// a ring, so that rows of the next image arrive while this one is read. Beats outside of the image are FILL.
// Order of a window's beats: row, column, group, all of it REPEAT times; GROUPWISE: group, row, column.
module tapeout_window #(
    parameter BITS = 8, LANES = 1, GROUPS = 1, HEIGHT = 1, WIDTH = 1, KERNEL_H = 1, KERNEL_W = 1,
    parameter STRIDE_H = 1, STRIDE_W = 1, DILATION_H = 1, DILATION_W = 1, TOP = 0, LEFT = 0,
    parameter OUT_H = 1, OUT_W = 1, ROWS = 2, REPEAT = 1, GROUPWISE = 0, FILL = 0
) (
    input clk,
    input rst,
    input in_valid,
    output in_ready,
    input [BITS*LANES-1:0] in_data,
    output reg out_valid,
    input out_ready,
    output reg [BITS*LANES-1:0] out_data
);
    localparam ROW = WIDTH * GROUPS;  // beats of a row
    localparam AB = $clog2(ROWS * ROW + 1), SB = $clog2(ROWS + 1);
    localparam signed [31:0] LAST_TOP = (OUT_H - 1) * STRIDE_H - TOP;
    localparam LAST_BASE = LAST_TOP < 0 ? 0 : LAST_TOP;
    // Rows and columns as signed numbers: from those above the image to those that the last window would reach.
    localparam YB = $clog2(HEIGHT + TOP + KERNEL_H * DILATION_H + STRIDE_H + ROWS) + 2;
    localparam XB = $clog2((WIDTH + LEFT + KERNEL_W * DILATION_W + STRIDE_W) * GROUPS) + 2;

    (* ram_style = "block" *) reg [BITS*LANES-1:0] ring[0:ROWS*ROW-1];

    // How far the reader is: `top` and `left` are the window's first row and column (in beats), `y` and `x` the
    // tap's; `base` is the first row that is still held, which lies in slot `slot` of the ring.
    reg [$clog2(GROUPS+1)-1:0] g;
    reg [$clog2(KERNEL_W+1)-1:0] kx;
    reg [$clog2(KERNEL_H+1)-1:0] ky;
    reg [$clog2(REPEAT+1)-1:0] again;
    reg [$clog2(OUT_W+1)-1:0] ox;
    reg [$clog2(OUT_H+1)-1:0] oy;
    reg signed [YB-1:0] top, y;
    reg signed [XB-1:0] left, x;
    reg [SB-1:0] slot;
    reg signed [YB:0] held;  // complete rows from `base` on; negative: rows yet to come that no window needs
    reg signed [YB:0] room;  // rows that may be written
    wire signed [YB-1:0] base = top < 0 ? 0 : top;
    wire signed [YB-1:0] next_top = top + STRIDE_H;
    wire signed [YB-1:0] bottom = top + (KERNEL_H - 1) * DILATION_H;
    wire signed [YB-1:0] needed = (bottom < HEIGHT ? bottom + 1 : HEIGHT) - base;

    wire g_last = g == GROUPS - 1, kx_last = kx == KERNEL_W - 1, ky_last = ky == KERNEL_H - 1;
    wire x_step = GROUPWISE ? 1'b1 : g_last;
    wire y_step = x_step && kx_last;
    wire g_step = GROUPWISE ? y_step && ky_last : 1'b1;
    wire window_end = GROUPWISE ? g_step && g_last : y_step && ky_last;
    wire pixel_end = window_end && again == REPEAT - 1;
    wire row_end = pixel_end && ox == OUT_W - 1;
    wire image_end = row_end && oy == OUT_H - 1;

    wire advance = !out_valid || out_ready;
    wire go = advance && held >= needed;

    // Rows that are free once this row of windows is read. LAST_BASE is `base` in the last row of windows.
    wire signed [YB-1:0] release_rows = image_end ? HEIGHT - LAST_BASE : (next_top < 0 ? 0 : next_top) - base;
    wire [SB:0] next_slot = slot + (image_end ? (HEIGHT - LAST_BASE) % ROWS : release_rows);
    wire [SB:0] tap_slot = slot + (y - base);

    // Where a slot begins: shifts and sums, which no tool takes for a multiplier.
    function [AB-1:0] row_address(input [SB:0] index);
        integer bit_index;
        begin
            row_address = 0;
            for (bit_index = 0; bit_index <= SB; bit_index = bit_index + 1)
                if (index[bit_index]) row_address = row_address + (ROW << bit_index);
        end
    endfunction

    always @(posedge clk)
        if (rst) begin
            g <= 0; kx <= 0; ky <= 0; again <= 0; ox <= 0; oy <= 0;
            top <= -TOP; y <= -TOP; left <= -LEFT * GROUPS; x <= -LEFT * GROUPS;
            slot <= 0;
        end else if (go) begin
            if (g_step) g <= g_last ? 0 : g + 1;
            if (x_step) begin
                kx <= kx_last ? 0 : kx + 1;
                x <= kx_last ? left : x + DILATION_W * GROUPS;
            end
            if (y_step) begin
                ky <= ky_last ? 0 : ky + 1;
                y <= ky_last ? top : y + DILATION_H;
            end
            if (window_end) again <= again == REPEAT - 1 ? 0 : again + 1;
            if (pixel_end) begin
                ox <= row_end ? 0 : ox + 1;
                left <= row_end ? -LEFT * GROUPS : left + STRIDE_W * GROUPS;
                x <= row_end ? -LEFT * GROUPS : left + STRIDE_W * GROUPS;
            end
            if (row_end) begin
                oy <= image_end ? 0 : oy + 1;
                top <= image_end ? -TOP : next_top;
                y <= image_end ? -TOP : next_top;
                slot <= next_slot >= ROWS ? next_slot - ROWS : next_slot;
            end
        end

    // Reading takes three stages: address, memory, output.
    reg valid1, valid2, outside1, outside2;
    reg [AB-1:0] address1;
    reg [YB-1:0] release1;
    reg [BITS*LANES-1:0] data2;
    wire in_image = y >= 0 && y < HEIGHT && x >= 0 && x < ROW;
    always @(posedge clk)
        if (rst) begin
            valid1 <= 0; valid2 <= 0; out_valid <= 0;
        end else if (advance) begin
            valid1 <= go; valid2 <= valid1; out_valid <= valid2;
        end
    always @(posedge clk)
        if (advance) begin
            address1 <= row_address(tap_slot >= ROWS ? tap_slot - ROWS : tap_slot) + x + g;
            outside1 <= !in_image;
            release1 <= row_end ? release_rows : 0;
            data2 <= ring[address1];
            outside2 <= outside1;
            out_data <= outside2 ? {LANES{FILL[BITS-1:0]}} : data2;
        end

    // Rows are free for the writer only when their last read has been done.
    wire freeing = advance && valid1;
    reg [AB-1:0] write_address;
    reg [$clog2(ROW+1)-1:0] column;
    wire write = in_valid && in_ready;
    wire row_written = write && column == ROW - 1;
    assign in_ready = room > 0;
    always @(posedge clk) if (write) ring[write_address] <= in_data;
    always @(posedge clk)
        if (rst) begin
            write_address <= 0; column <= 0; held <= 0; room <= ROWS;
        end else begin
            if (write) begin
                write_address <= write_address == ROWS * ROW - 1 ? 0 : write_address + 1;
                column <= row_written ? 0 : column + 1;
            end
            held <= held + (row_written ? 1 : 0) - (go && row_end ? release_rows : 0);
            room <= room - (row_written ? 1 : 0) + (freeing ? $signed({1'b0, release1}) : 0);
        end
endmodule
