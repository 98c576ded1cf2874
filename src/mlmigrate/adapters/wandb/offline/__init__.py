"""Folders of runs that W&B's SDK wrote without a server, and the same written for `wandb sync` to bring to one."""
