"""Ask the TPU compiler what a model needs, without a TPU: `spt-jax plan`."""
