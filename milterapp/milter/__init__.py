"""The in-line edge: supervisor, session (the only importer of pymilter), applying a decision.

Must never: fork from a worker (they are threaded), reach the monitor, or let a text of pymilter reach a client.
"""
