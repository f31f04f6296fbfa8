"""Run many processes as one: find and connect them, stop them and end them together."""
