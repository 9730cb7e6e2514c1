"""Real servers, real workers and a wire counter for the tests; nothing here is part of the library."""
