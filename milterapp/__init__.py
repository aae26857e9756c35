"""Mail filtering for Postfix. Postfix keeps all SMTP, queueing and delivery; milterapp only decides.

Must never: do anything at import time beyond defining names; the pipe client pays for every import here.
"""

__version__ = "0.1.0"
