"""`python -m milterapp` is the command `milterapp`."""

import sys

from milterapp.commands.main import main

sys.exit(main())
