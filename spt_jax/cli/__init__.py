"""The commands of `spt-jax`, a module each: read the options, call the library, print."""
