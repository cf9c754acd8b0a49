"""What every table of the settings is made of."""

from pydantic import BaseModel, ConfigDict


class Table(BaseModel):
    """One table of a settings file: unknown keys are refused, values keep their TOML type, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
