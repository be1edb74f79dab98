"""The public functions: generate, batch, enlarge, fetch, calibrate, rehearse."""
