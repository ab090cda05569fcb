"""The demo and the benchmarks; run them with `make demo` and `make bench`."""
