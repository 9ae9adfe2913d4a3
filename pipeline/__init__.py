"""The stages and the `mta-prep` command: read → parse → align → dataset, and dataset → teacher → cache.

`commands` turns flags into configs; `read`, `parse` and `align` turn rows into aligned units (handed on as `text` names
them); `dataset` and `cache` make, check and show the two kinds of folders; `shards` is what both are made by.
Imports `schemas`, and of `trainer` the maths and models that the cache shares with it; nothing imports back.
"""
