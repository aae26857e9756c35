"""What a rule script may import, and running one.

Must never: import milter, delivery, postfix or commands, or hand a script anything but values.
"""

from milterapp.script.asking import confirm
from milterapp.script.context import ScriptError, output, store
from milterapp.script.routes import route, stateless
from milterapp.script.site_lists import site
from milterapp.script.templates import template
from milterapp.script.untrusted import Match, TaintError, Untrusted
from milterapp.script.values import Address, HeaderText, Mailbox, Rendered

__all__ = [
    "Address",
    "HeaderText",
    "Mailbox",
    "Match",
    "Rendered",
    "ScriptError",
    "TaintError",
    "Untrusted",
    "confirm",
    "output",
    "route",
    "site",
    "stateless",
    "store",
    "template",
]
