"""The command line: one module a command, thin.

Must never: decide anything; results go to standard output, everything else to standard error.
"""
