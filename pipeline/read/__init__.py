"""From a file to what a tokenizer and a parser read: sources, templates, tokenizers, segmentation."""
