"""The teacher cache: a prepared dataset and a teacher in, the signals that losses need out.

`choice` turns a recipe and layers into a config; `documents` reads the teacher's side of the dataset and cuts it into
shards; `matching` makes sure that teacher and dataset belong together; `stage` computes a `shard` (the maths is in
`trainer`); `plan` plans, runs and seals; `sizes` and `estimate` say beforehand what it will cost; `card`, `verify`, `view`,
`report` are those of `pipeline.dataset`.
"""
