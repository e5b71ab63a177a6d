"""Pure decisions: plain objects and functions that are told the time and never wait, log or do I/O."""
