"""Studies: many runs that differ in few options."""
