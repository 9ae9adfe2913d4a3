"""Any causal language model, whatever it is here for: teacher, student, or evaluated.

Where its files are and who it is (`hub`), loaded as deep as needed (`loading`, `tokenizer`, `pickles`), run on documents
without padding (`hidden_states`, `packed_attention`), and its last states to logits (`head`).
"""
