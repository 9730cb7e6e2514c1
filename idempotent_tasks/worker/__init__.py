"""The parent process of a worker: its requests, the reaper of dead children, and the signals."""
