"""The transaction log of W&B's SDK, `run-<id>.wandb`: all of a run beside the bytes of its files.

    framing   LevelDB's log format: checked chunks in blocks of 32 KiB
    reader    Log: what a log tells, as far as it can be read
    writer    LogWriter: a log that `wandb sync` takes

Between them: `state` folds the records that tell of the run, `columns` makes Blocks of rows, `wire` makes rows
of Blocks, and `messages` has the SDK's protobuf classes.
"""
