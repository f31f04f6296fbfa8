"""Many processes as one run: found, connected, told to stop, ended together."""
