"""What a rule script may import, and running one.

Must never: import milter, delivery, postfix or commands, or hand a script anything but values.
"""
