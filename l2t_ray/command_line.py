"""Command lines whose mistakes are one sentence without credentials.

Imports nothing heavy, as `exit_codes`.
"""

import argparse
from typing import NoReturn

from l2t_ray.exit_codes import MISTAKE, said


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong with the arguments on one line, and shows no credentials that are in them."""

    def error(self, message: str) -> NoReturn:
        self.exit(said(f"error: {message}; {self.prog} --help shows what can be given.", MISTAKE))
