"""Many runs: grids as data, a ledger that survives kills, workers, launchers, the report."""
