"""The pure core: decides, and neither reads a clock nor opens a socket.

Time comes in as `now` (monotonic seconds), randomness as a `random.Random`; refusals are
effects or typed errors. Production, the property tests and the simulator run the same code.
"""
