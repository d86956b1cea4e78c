"""The ground floor: what every section of the job file is made of, and how a mistake in it is told to a person."""

from pydantic import BaseModel, ConfigDict


class RequestError(ValueError):
    """What was asked for cannot be done as asked. The message names what was found, what is allowed and the remedy."""


class Section(BaseModel):
    """Base of every section of the job file: immutable, no unknown keys, no infinities."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)
