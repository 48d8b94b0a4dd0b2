"""The sub-commands of `python -m ddpm`, a module each.

A module has a docstring, which is its help; `add_arguments(parser)`; and `run(arguments)`, which prints what it found
and raises DdpmError or OSError, for the command line to end with one sentence. `ddpm.__main__` names the modules.
"""
