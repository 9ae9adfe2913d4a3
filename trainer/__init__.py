"""The student's side: maths → models → batches → teacher, objectives → student → run.

`maths` is pure functions of tensors, which the live student, the live teacher and the cache all call, so "cached equals
live" needs no second implementation. `models` loads any causal language model. `batches` are rows of a dataset, `teacher`
is the teacher's side of them, `objectives` are the terms of the loss, `student` is the model that learns. `run` puts them
together under DeepSpeed (`engine`); `evaluation` judges what comes out. Imports `schemas`, never `pipeline`.
"""
