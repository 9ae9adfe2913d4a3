"""The teacher's side of a batch.

What all terms need together (`needs`), of which layers (`pairing`); out of caches (`caches`, `cached`) or of the teacher
itself (`live`); either way made into `targets` for the units and tokens of the batch.
"""
