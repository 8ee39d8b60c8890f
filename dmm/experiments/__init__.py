"""Experiments whose results the book shows: each module is a command that remakes one committed result file."""
