"""The checker of signatures in tests, which takes a whole number for a float, as types do (PEP 484)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
