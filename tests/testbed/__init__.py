"""What tests and benchmarks run on: servers, proxies, worker processes and what they write down. Imports no pytest."""
