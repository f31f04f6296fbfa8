"""The options of runs, pretraining, devices, decoding and plans, as frozen dataclasses."""
