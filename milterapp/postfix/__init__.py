"""What we know of Postfix: postconf, exit codes, hand-back.

Must never: import anything of ours but mail, or change a line of main.cf or master.cf that is not ours.
"""
