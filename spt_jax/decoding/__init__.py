"""How answers are written: greedily, by sampling or by beam search."""
