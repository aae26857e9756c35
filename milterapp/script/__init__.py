"""What a rule script may import, and running one.

Must never: import milter, delivery, postfix or commands, or hand a script anything but values.
"""

from milterapp.script.context import ScriptError, output, store, unavailable
from milterapp.script.routes import route, stateless
from milterapp.script.untrusted import Match, TaintError, Untrusted
from milterapp.script.values import Address, HeaderText, Mailbox

__all__ = [
    "Address",
    "HeaderText",
    "Mailbox",
    "Match",
    "ScriptError",
    "TaintError",
    "Untrusted",
    "confirm",
    "output",
    "route",
    "stateless",
    "store",
    "template",
]

confirm = unavailable("confirm")
template = unavailable("template")
