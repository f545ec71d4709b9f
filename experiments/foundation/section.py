"""What the sections of a config are made of; each lies beside what it builds."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0)]
Factor = Annotated[int, Field(ge=2)]
FolderName = Annotated[str, Field(min_length=1)]
NonNegative = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """Frozen, without unknown keys, without conversions between types, without nan and inf."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
