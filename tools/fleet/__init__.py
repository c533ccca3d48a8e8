"""A simulator of fleets: how many streams a device can run, and how long clients wait. Independent of Slipstream."""
