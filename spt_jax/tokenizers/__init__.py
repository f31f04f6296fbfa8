"""Tokenizers: our BPE, and those that T5, mT5 and ByT5 were published with."""
