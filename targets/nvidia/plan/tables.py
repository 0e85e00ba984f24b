"""The sections of a plan's file and their records; docs/nvidia-plan.md is the specification."""

from __future__ import annotations

import struct

MAGIC = b"TAPEPLAN"
# magic, sha256 of what follows it up to the weights, version, sections, bytes of the file, flags, nothing
HEADER = struct.Struct("<8s32sIIQII")
DIGESTED = 40  # where the digested bytes begin
STRIPPED = 1  # flag: the weights are left out
SECTION = struct.Struct("<4sIQQ")  # name, bytes of a record, offset, bytes
WEIGHTS = b"WGTS"
ALIGNED = 64  # of every section; of the weights PAGE
PAGE = 4096
NONE = (1 << 32) - 1  # a number that stands for nothing

# Records by section, in the order of the file. A range is (first, count) in another section.
RECORDS = {
    b"STRS": struct.Struct("<B"),  # bytes of strings, UTF-8; a string is a range here
    b"CODE": struct.Struct("<q"),  # words of expressions
    b"EXPR": struct.Struct("<II"),  # an expression: a range of CODE
    b"LIST": struct.Struct("<I"),  # numbers of records elsewhere
    b"META": struct.Struct("<IIII"),  # key, text: strings
    b"SYMS": struct.Struct("<II"),  # name: string
    b"PROF": struct.Struct("<Q"),  # bytes of the arena
    b"SIZE": struct.Struct("<qqq"),  # least, best, most: of each symbol, profile by profile
    b"ARNA": struct.Struct("<Q"),  # offset of each tensor in the arena, profile by profile
    # name: string, type, nothing, shape: range of NUMS, offset, bytes, sha256
    b"WGHT": struct.Struct("<IIIIIIQQ32s"),
    # name: string, type, kind, shape: range of EXPR by LIST, storage, weight
    b"TENS": struct.Struct("<IIIIIIII"),
    b"NUMS": struct.Struct("<q"),  # numbers; floats by their 64 bits
    b"ATTR": struct.Struct("<IIIIII"),  # key: string, type, nothing, values: range of NUMS
    b"ARGS": struct.Struct("<IId"),  # kind, tensor or expression, float
    # group, architecture, symbol: string, shared, warps, registers, spills, parameters: range of PARM,
    # compression, nothing, offset in IMGS, bytes there, bytes of the image
    b"KERN": struct.Struct("<IIIIIIIIIIIIQQQ"),
    b"PARM": struct.Struct("<II"),  # offset and bytes of a kernel's parameter
    b"IMGS": struct.Struct("<B"),  # images of kernels, compressed by zlib
    b"TACT": struct.Struct("<IIdII"),  # name: string, microseconds, origin: string
    # operation: string, attributes: range of ATTR, kernel, tactic, grid: three of EXPR, nothing,
    # arguments: range of ARGS, reads, writes: ranges of LIST (tensors), sources: range of LIST (pairs: strings)
    b"LAUN": struct.Struct("<IIIIIIIIIIIIIIIIII"),
}
