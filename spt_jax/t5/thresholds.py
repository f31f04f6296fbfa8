"""Sizes that decide between two ways of computing the same, and what each choice gains.

They change speed and memory, never a result. Two others stand where they are used: the option of
XLA for training steps on CPU (`step.step_options`) and the group size of `decoding.topk`.
"""

UNROLLED = 4
"""Most layers of a stack that run one by one; a stack with more is scanned.

A scan copies what the backward pass needs into an array over layers and out of it again. Unrolled,
together with two other changes, the pretraining step of spt-nano took 0.58 s instead of 1.07 s on
two CPU cores (commit 15bc4be). The price is compile time that grows with depth.
"""

UNROLLED_ON_CPU = 12
"""`UNROLLED` on CPU, where a scan also copies the weights of a layer at every decoded token.

That is three times the memory traffic of a token (docs/benchmarks.md). The price while decoding is
a second copy of the decoder's layers.
"""

UNROLLED_ENCODER_ON_TPU = 24
"""`UNROLLED` of the encoder on TPU, if the mesh does not gather weights (`fsdp`).

For T5 1.1 base on a v5e the compiler estimates 207 million cycles a step with all layers scanned,
and 129 million with all layers unrolled, attention being a kernel in both. The difference is what
the backward pass needs: a scan copies 7.5 GB of it into arrays over layers, and 6.1 GB out again.
The decoder has few positions, so that its copies are small and it stays scanned.
"""

TRANSPOSED_ROWS = 8
"""Rows, counting every beam, from which decoding on CPU transposes the kernels to [out, in].

XLA's product is faster so for many rows: a token of 32 rows of T5 1.1 base takes 69 ms and not 84.
For a single row it is slower: 27 ms and not 16 (commit 4db262d).
"""
