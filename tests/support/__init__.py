"""What several test modules share: tiny models, fake services, processes and checkpoints."""
