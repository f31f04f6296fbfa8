"""How `spt-jax plan` asks the TPU compiler what a model needs, with no TPU."""
