"""Pure functions of tensors, shared by student, live teacher and cache: no files, no models.

A batch is flat (`ragged`). Tokens get weights, tokens become units, units become relations (`geometry`), which lie as flat
upper triangles (`triangle`); one layer's are its signals (`layer_signals`), stored in few bytes (`quantization`). Sequences of
vectors are compared by time warping (`warping`) on tables of costs (`soft_dtw`), in loops that numba compiles (`loops`).
"""
