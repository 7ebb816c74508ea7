"""Which KV slots stay: settings, the table of slots, policies over it, and a second tier for what was evicted.

Pure functions on arrays. Nothing here runs an engine, reads text or touches the disk.
"""
