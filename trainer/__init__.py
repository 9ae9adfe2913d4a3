"""The student's side, and the maths that it shares with the teacher cache.

A batch is flat: the values of all its documents one after the other, and row pointers that say where each one begins
(`ragged`). Tokens get weights, tokens become units, units become relations (`geometry`); relations lie as flat upper
triangles, in memory as on disk (`triangle`). All are pure functions of tensors: the live student (with gradients), the
live teacher and the cache call the same ones, so "cached equals live" needs no second implementation.
Imports `schemas`, never `pipeline`.
"""
