"""From a reference to the files of a model, inspected and digested, before anything reads them. No torch."""

from dataclasses import dataclass

from mi_audit.errors import ModelError
from mi_audit.model.cache import verify_converted
from mi_audit.model.checkpoint import Checkpoint, inspect
from mi_audit.model.identity import FileDigest, digest_file, root_of
from mi_audit.model.progress import Steps
from mi_audit.model.sources import Located, locate


@dataclass(frozen=True)
class Opened:
    """The files of the model that `ref` names: where they are, which of them may be loaded, and the digest of each."""

    ref: str
    located: Located
    checkpoint: Checkpoint
    files: tuple[FileDigest, ...]

    @classmethod
    def of(cls, ref: str, steps: Steps) -> "Opened":
        """Find the files, and if need be fetch and convert them; inspect and digest them.

        Raises:
            ModelError: there is no such model, or its files can't be trusted or read.
        """
        located = locate(ref, steps)
        checkpoint = inspect(located.folder, contained_in=located.contained_in)
        files = _digests(checkpoint, steps)
        if located.source_sha256 is not None:
            verify_converted(located.folder, {file.name: file.sha256 for file in files})
        return cls(ref, located, checkpoint, files)

    @property
    def root(self) -> str:
        """The digest over all files."""
        return root_of(self.files)

    def refuse_changed(self, steps: Steps) -> None:
        """Digest the files again.

        Raises:
            ModelError: they are no longer what they were.
        """
        if _digests(self.checkpoint, steps) != self.files:
            raise ModelError(f"the files of {self.ref} have changed since they were digested: run again on files that stay as they are")


def _digests(checkpoint: Checkpoint, steps: Steps) -> tuple[FileDigest, ...]:
    try:
        steps.begin("Hashing the model's files", total=checkpoint.size)
        return tuple(FileDigest(name, *digest_file(path, steps.advance)) for name, path in sorted(checkpoint.files.items()))
    except OSError as error:
        raise ModelError(f"the model's files can't be read: {error}") from error
