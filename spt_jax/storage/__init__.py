"""Where runs are kept: a folder of this machine, or a bucket by way of one."""
