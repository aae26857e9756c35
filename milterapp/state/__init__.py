"""Small durable memory: journal, seen, vacation, rates, conversation states (SQLite).

Must never: import anything of ours, or report success before what it was told is on disk.
"""
