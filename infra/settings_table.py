"""What every table of the settings is made of."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

Email = Annotated[str, StringConstraints(pattern=r"^[^@\s]+@[^@\s]+\.[^@\s.]+$", max_length=254)]


class Table(BaseModel):
    """One table of a settings file: unknown keys are refused, values keep their TOML type, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
