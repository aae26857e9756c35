"""`milterapp script`: the spawner, which runs the scripts of the site's rules for the milter, as a service.

Must never: read the configuration itself (`handover` has a child without privileges do that), or do the service's work.
"""

from __future__ import annotations

import argparse
from typing import NoReturn

from milterapp.commands import handover, site_file

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    site_file.argument(parser)


def run(options: argparse.Namespace) -> NoReturn:
    """Become the service. Raises Failure 66, 70 or 78."""
    handover.start("milterapp.delivery.spawner", options.config)
