"""Rows of a prepared dataset to micro-batches.

Rows off mapped Arrow (`documents`), the units and positions that both sides have (`units`), which rows a step takes
(`order`), read ahead by processes (`loader`, `transfer`) as one flat `batch`.
"""
