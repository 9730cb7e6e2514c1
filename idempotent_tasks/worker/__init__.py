"""The worker's parent process: its request class, the reaper of dead children's claims, the signal handlers."""
