"""What a student is worth: sampled responses and their ROUGE-L, cross-entropy on held-out text, and whether two differ."""
