"""The types of which records are made: short enough, well-formed, finite, so that canonical JSON (RFC 8785) carries them exactly."""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from mi_audit.hookspecs import REPORT_FILE

MAX_INTEGER: Final = 2**53 - 1

Text = Annotated[str, StringConstraints(strict=True, max_length=65_536)]
Name = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=1_024)]
Digest = Annotated[str, StringConstraints(strict=True, pattern=r"^[0-9a-f]{64}$")]
ReportFile = Annotated[str, StringConstraints(strict=True, pattern=f"^{REPORT_FILE}$")]
Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=0, le=MAX_INTEGER)]
Integer = Annotated[int, Field(strict=True, ge=-MAX_INTEGER, le=MAX_INTEGER)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
About = Literal["model", "instrument"]
Op = Literal[">=", ">", "<=", "<"]


class Record(BaseModel):
    """Base of all records: immutable, and a field that is not declared is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, revalidate_instances="never")
