"""Trees to units, characters to tokens: pure functions of arrays, no files."""
