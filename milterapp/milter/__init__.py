"""The in-line edge: supervisor, workers, the protocol, applying a decision.

Must never: fork from a worker (they are threaded), reach the monitor, or let a text that is not ours reach a client.
"""
