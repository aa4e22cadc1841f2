"""Who holds annotations to their word while tests run: beartype, with shapes by jaxtyping. See pyproject.toml."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # a whole number will do where a float is asked for
