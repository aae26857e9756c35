"""What a message is: addresses, envelope, headers, MIME, decoded text, byte-exact edits.

Must never: import anything of ours, do I/O, or raise on what a message holds (what cannot be read is marked malformed).
"""
