"""`python -m milterapp` is the command `milterapp`.

Must never: do anything but call it.
"""

import sys

from milterapp.commands.main import main

sys.exit(main())
