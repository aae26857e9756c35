"""What a rule is, and deciding: problems with positions, conditions, actions, policy, decide.

Must never: import anything of ours but mail, do I/O while deciding, or read a clock of its own.
"""
