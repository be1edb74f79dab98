"""One component at a time: the scheduler, the process that may be killed, and the run folder."""
