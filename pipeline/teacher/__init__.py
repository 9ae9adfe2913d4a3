"""`mta-prep cache-teacher`: a prepared dataset and a teacher in, the signals that losses need out.

`settings` turns a recipe and layers into a config; `documents` reads the teacher's side of the dataset and cuts it into
shards; `matching` makes sure that teacher and dataset belong together; `stage` computes a shard (the maths is in
`trainer`); `cache` plans, runs and seals; `estimate` says beforehand what it will cost; `verify` and `view` look at the result.
"""
