"""How good predictions are, with intervals that respect patients. No torch: any table of predictions will do."""
