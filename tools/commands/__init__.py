"""One module a verb: `configure(parser)` and `run(args) -> int`. Heavy imports happen in run, never at the top."""
