"""What a manifest must hold to be read: it may be cut short, edited, of another version, or of another program."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsim.record.digest import FORMAT

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Counted = Annotated[int, Field(ge=0, lt=2**63)]


class _Part(BaseModel):
    """Types as they are written; what this version does not know stays as it is."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Kind(_Part):
    kind: str


class _Clients(_Part):
    count: Annotated[int, Field(ge=1, lt=2**63)]
    detector: _Kind | None = None


class _Server(_Part):
    rounds: Annotated[int, Field(ge=1, lt=2**63)]
    strategy: _Kind


class _Stop(_Part):
    metric: str | None = None
    at_least: float | None = None
    at_most: float | None = None


class _Engine(_Part):
    dtype: Literal["float32", "float64"] = "float32"


class _Data(_Part):
    source: _Kind


class _Scenario(_Part):
    name: str
    data: _Data
    clients: _Clients
    model: _Kind
    server: _Server
    stream: dict[str, Any] | None = None
    stop: _Stop | None = None
    engine: _Engine = _Engine()


class _Model(_Part):
    shape: list[Counted]
    outputs: Counted
    parameters: Counted
    arrays: list[str]
    training_flops_per_example: float


class _Joules(_Part):
    compute: float
    down: float
    up: float
    idle: float
    total: float
    wasted: float


class _Energy(_Part):
    kind: str
    constants: dict[str, float]
    joules: _Joules


class _Edges(_Part):
    count: Counted
    rounds: Counted
    bytes_down: Counted
    bytes_up: Counted
    bytes_wasted: Counted


class _Process(_Part):
    pid: int
    host: str
    began: str


class About(_Part):
    """A manifest, as far as readers lean on it."""

    status: Literal["running", "done", "failed", "interrupted", "pruned"]
    error: str = ""
    scenario: _Scenario
    scenario_digest: str
    folder: str
    seed: Counted
    digest: Digest | None
    metrics_digest: Digest | None
    digest_format: str = FORMAT
    final: dict[str, float]
    virtual_s: float
    bytes_down: Counted
    bytes_up: Counted
    bytes_wasted: Counted
    wall_s: float
    started: str
    model: _Model
    executor: dict[str, Any]
    promise: str = ""
    rests_on: dict[str, dict[str, str]] = {}
    notes: list[str] = []
    energy: _Energy | None = None
    edges: _Edges | None = None
    classes: list[str] = []
    natural_clients: list[str] = []
    files: dict[str, str]
    code: dict[str, str] = {}
    versions: dict[str, str]
    machine: dict[str, str]
    hindsight: bool = False
    ground: str = ""
    process: _Process | None = None


def fault(manifest: Any) -> str:
    """Return what keeps *manifest* from being read, in a few words; empty where nothing does.

    >>> fault({"status": "done"})[:40], fault([1])
    ('scenario: field required (and 17 others)', 'it is a list, not a table')
    """
    if not isinstance(manifest, dict):
        return f"it is a {type(manifest).__name__}, not a table"
    try:
        About.model_validate(manifest)
    except ValidationError as error:
        first, *others = error.errors(include_url=False, include_input=False)
        where, said = ".".join(str(part) for part in first["loc"]), first["msg"]
        return f"{where}: {said[:1].lower()}{said[1:]}{f' (and {len(others)} others)' if others else ''}"
    except RecursionError:
        return "it is nested too deep"
    return ""
