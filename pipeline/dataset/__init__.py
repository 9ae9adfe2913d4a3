"""The prepared dataset: made (`prepare`, `realign`, `assemble`), sealed, checked, shown.

The same names as in `pipeline.cache` do the same things: `card`, `verify`, `view`, `report`.
"""
