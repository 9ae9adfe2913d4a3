"""Constituents: parsers behind one protocol (`base`), benepar's chart parser made fast, its training and scoring."""
