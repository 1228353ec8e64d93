"""CT series as data: geometry, volumes, readers, windows, resampling and masks."""
