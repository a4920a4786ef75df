"""Who generates an experiment's answers: the process itself, or vLLM servers that run its weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AliasChoices, BeforeValidator, Field, field_validator, model_validator

from mechsafety.core.errors import MechsafetyError, way
from mechsafety.experiments.config import Config, EngineConfig, Option
from mechsafety.judges.endpoint_spec import require_address


class BackendConfig(Config):
    """Who generates: this process, or a vLLM server that runs the edited checkpoint."""

    backend: Literal["own", "vllm"] = Field(
        default="own", description="what generates: this process, or vLLM servers (edit in the weights)"
    )
    server: Annotated[
        tuple[str, ...],
        Option(metavar="URL,URL", many="commas"),
        BeforeValidator(lambda given: (given,) if isinstance(given, str) else given),
    ] = Field(
        default=(),
        validation_alias=AliasChoices("server", "address"),
        description="addresses of vLLM servers, e.g. http://127.0.0.1:8000/v1; a model is looked for by its name",
    )
    compared: Annotated[int, Option(name="--compared-prompts")] = Field(
        default=8, ge=1, description="prompts that the server and this process both answer, greedily"
    )
    least_agreement: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="share of their tokens before the first difference, below which this process generates",
    )

    @field_validator("server")
    @classmethod
    def _addresses(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for address in given:
            require_address(address)
        return tuple(dict.fromkeys(address.rstrip("/") for address in given))

    @model_validator(mode="after")
    def _companions(self) -> BackendConfig:
        if (self.backend == "vllm") != bool(self.server):
            raise ValueError(
                f"{way('--backend vllm', 'generation.backend vllm')} and {way('--server', 'generation.server')} "
                "go together: give both or neither"
            )
        return self


def require_here(config: EngineConfig, backend: BackendConfig) -> None:
    """Raise :class:`MechsafetyError` for servers in a run on workers: batches are made by the servers."""
    if config.on_workers and backend.backend == "vllm":
        raise MechsafetyError(
            f"{way('--backend vllm', 'generation')} makes batches on its server: leave out {workers_asked(config)}"
        )


def workers_asked(config: EngineConfig) -> str:
    """The option that asks for workers."""
    return way("--engine ray") if config.engine == "ray" else way("--workers")
