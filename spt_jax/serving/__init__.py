"""One frozen model behind an address: its prompts answer the requests of many clients."""
