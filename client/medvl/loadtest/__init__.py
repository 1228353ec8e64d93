"""Load generator for a MedVL-SAM2 service: an open or closed loop of requests, with answers checked, not only timed."""
