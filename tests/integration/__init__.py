"""Tests with a real broker, real prefork workers and a real store; each is named for the window it crashes in."""
