"""The repositories of the hub that tests run on loopback: commits of files, in memory."""

import dataclasses
import hashlib


@dataclasses.dataclass(frozen=True)
class File:
    """A file of a commit; a large one is downloaded by its SHA-256."""

    content: bytes
    is_lfs: bool

    @property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclasses.dataclass
class Repository:
    """Commits, each with all its files.

    Attributes:
        name: where the hub has it: USER/NAME of a model, datasets/USER/NAME of a data set.
        objects: the hub's large files, by SHA-256.
        refs: the commit of each branch and tag.
    """

    name: str
    objects: dict[str, bytes]
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, File]] = dataclasses.field(default_factory=dict)
    refs: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.name.split("/")[-2]

    @property
    def head(self) -> str:
        return self.refs["main"]

    @property
    def files(self) -> dict[str, File]:
        return self.commits[self.head]

    def commit(self, files: dict[str, File], *, branch: str = "main") -> str:
        """Let a branch have these files and no others."""
        content = [(name, file.git_oid) for name, file in sorted(files.items())]
        described = repr((branch, self.refs.get(branch), content))
        oid = hashlib.sha1(described.encode()).hexdigest()
        self.objects.update({x.sha256: x.content for x in files.values() if x.is_lfs})
        self.commits[oid] = files
        self.refs[branch] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        revision = self.refs.get(revision, revision)
        return revision if revision in self.commits else None
