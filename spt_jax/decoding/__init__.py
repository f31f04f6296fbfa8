"""Decoding: greedy, by sampling and by beam search; and the likelihood of given answers."""
