"""From text on disk to padded batches of token ids: sources, tasks and the pipeline, in numpy."""
