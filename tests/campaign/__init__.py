"""Damaged and hostile files against each command that reads files: `python -m tests.campaign --mutations 600 --seed 3`.

Each case is a copy of a small run and its data set with one thing changed, on which the commands that read it are run.
None may call code that a file names, end in a traceback, take longer than `SECONDS` or more memory than `MEMORY`, or
say more than one line about what is wrong.
"""
