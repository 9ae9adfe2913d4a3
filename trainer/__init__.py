"""The student's side, and the maths that it shares with the teacher cache.

A batch is flat: the values of all its documents one after the other, and row pointers that say where each one begins
(`ragged`). Tokens get weights, tokens become units, units become relations (`geometry`); relations lie as flat upper
triangles, in memory as on disk (`triangle`). All are pure functions of tensors: the live student (with gradients), the
live teacher and the cache call the same ones, so "cached equals live" needs no second implementation.

A run (`run`) takes rows (`documents`) and the teacher's side of them, out of caches (`cached`) or from the teacher itself
(`live`), which `join` makes into micro-batches (`batch`) of the units that both sides have; `data` deals them out. The
student (`student`) and the terms of its loss (`objectives`, `logits`) are one module (`distiller`) under DeepSpeed
(`engine`), saved by `checkpoint`, told of by `monitor`, given away by `export`, and judged by `evaluate`.
Imports `schemas`, never `pipeline`.
"""
