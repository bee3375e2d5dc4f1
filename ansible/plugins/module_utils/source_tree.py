"""An application's source as a directory: git is fetched, a wheel or an sdist is unpacked."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

GIT_TIMEOUT_SECONDS = 300
"""How long one git command may take; the first fetch brings the whole repository."""

FULL_COMMIT_ID = r"[0-9a-f]{40}([0-9a-f]{24})?"

HEAD = "refs/poolkit/HEAD"
"""Where the mirror keeps the remote's default branch."""

MIRROR_SETTINGS = (
    "core.hooksPath=/dev/null",
    "gc.autoDetach=false",  # nothing goes on after the module's end
    "maintenance.autoDetach=false",
)

# It answers from the environment: an argument is seen by everyone.
CREDENTIAL_HELPER = (
    'credential.helper=!f() { test "$1" = get && '
    'printf "username=%s\\npassword=%s\\n" "$POOLKIT_GIT_USER" "$POOLKIT_GIT_PASSWORD"; }; f'
)
NO_OTHER_HELPER = "credential.helper="

# Set where the play was started by a git hook; they would lead git to another repository.
GIT_VARIABLES_OF_A_REPOSITORY = (
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_WORK_TREE",
)


class SourceError(Exception):
    """The source cannot be used; the message names the variable and what to do."""


@dataclass(frozen=True)
class Tree:
    """A source in a directory: its path, its name in messages, its commit id ("" without git).

    root: where path is a part of a source, all of it; else None.
    """

    path: Path
    name: str
    revision: str = ""
    root: Path | None = None


def is_git_url(source: str) -> bool:
    """Tell scheme://… and user@host:path from a path."""
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|\w[\w.-]*@[^/:]+:", source))


def source_kind(source: str, revision: str) -> str:
    """Return git, wheel, sdist or directory."""
    packed = {".whl": "wheel", ".tar.gz": "sdist"}
    kind = next((kind for end, kind in packed.items() if source.endswith(end)), "")
    if is_git_url(source):
        if kind:
            raise SourceError(
                f"app_source: {without_credentials(source)} is the address of a {kind}: download "
                "it, and give its path on the controller"
            )
        return "git"
    if kind:
        if revision:
            raise SourceError(f"app_source_revision: a {kind} has no revisions: remove it")
        return kind
    return "git" if revision else "directory"


def without_credentials(text: str) -> str:
    """Return the text with no user or password in its http URLs, and no password in others."""
    text = re.sub(r"(?i)(https?://)[^/\s]*@", r"\1", text)
    return re.sub(r"(\w://[^/\s:@]*):[^/\s]*@", r"\1@", text)


def credentials(url: str) -> tuple[str, str, str | None]:
    """Return the URL without an http user and password, the user and the password.

    The password is None where the URL has none. The user may then be a token, which is as secret.
    """
    if not re.match(r"(?i)https?://", url):
        return url, "", None
    try:
        parts = urlsplit(url)
        readable = parts.port != 0 and ("@" in parts.netloc or "@" not in url)
    except ValueError:
        readable = False
    if not readable:
        # The password may be in any part of it, so no part is shown.
        raise SourceError(
            "app_source: the URL's user, password, host and port cannot be told apart: write "
            "special characters in percent form (/ is %2F, @ is %40, # is %23)"
        )
    if "@" not in parts.netloc:
        return url, "", None
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    password = None if parts.password is None else unquote(parts.password)
    return plain, unquote(parts.username or ""), password


class Mirror:
    """A bare repository in the cache that holds what was fetched from one URL.

    The URL is not written into it. Nothing is checked out, and no hook runs.
    """

    def __init__(self, url: str, cache: Path, timeout: int = GIT_TIMEOUT_SECONDS) -> None:
        self.url, self.user, self.password = credentials(url)
        self.name = without_credentials(self.url)
        self.timeout = timeout
        self.path = cache / hashlib.sha256(self.url.encode()).hexdigest()[:16]

    def git(self, *arguments: str, refused: str | None = None) -> str:
        """Run git on the mirror; return its output.

        refused: what a failure means, for the error; None gives "" for a failure.
        """
        settings: tuple[str, ...] = MIRROR_SETTINGS
        if self.password is not None:
            settings += (NO_OTHER_HELPER, CREDENTIAL_HELPER)
        elif self.user:
            # The operator's own helpers may know a password; where none does, it is a token.
            settings += (CREDENTIAL_HELPER,)
        command = ["git", f"--git-dir={self.path}"]
        command += [word for setting in settings for word in ("-c", setting)]
        environment = {
            **{k: v for k, v in os.environ.items() if k not in GIT_VARIABLES_OF_A_REPOSITORY},
            "LC_ALL": "C",
            # Nobody is there to answer: neither git nor ssh may ask, on a terminal or in a window.
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "",
            "SSH_ASKPASS_REQUIRE": "never",
            "POOLKIT_GIT_USER": self.user,
            "POOLKIT_GIT_PASSWORD": self.password or "",
        }
        if self.user:  # for the operator's helpers; the address does not name it
            number = int(environment.get("GIT_CONFIG_COUNT") or 0)
            environment[f"GIT_CONFIG_KEY_{number}"] = "credential.username"
            environment[f"GIT_CONFIG_VALUE_{number}"] = self.user
            environment["GIT_CONFIG_COUNT"] = str(number + 1)
        try:
            # A session of its own has no terminal, and ends with all that git started.
            process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env=environment,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise SourceError(
                "app_source: git is not installed on the controller: install it (apt install git)"
            ) from None
        try:
            output, errors = process.communicate(timeout=self.timeout)
        except subprocess.TimeoutExpired:
            raise SourceError(
                f"app_source: git {arguments[0]} of {self.name} did not end within {self.timeout} "
                "seconds: check that the controller reaches it; for a very large repository, "
                "clone it on the controller and give that directory"
            ) from None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        if process.returncode == 0:
            return output
        if refused is None:
            return ""
        said = without_credentials(errors.replace(self.url, self.name)).strip()
        secret = self.user if self.password is None else self.password
        said = said.replace(secret, "***") if secret else said
        raise SourceError(f"{refused}: {' '.join(said.split()) or 'git gave no reason'}")

    def commit(self, revision: str) -> str:
        """Return the commit id of a revision that the mirror has, else "".

        A tag goes before a branch of the same name, as in git itself.
        """
        names = [f"refs/tags/{revision}", f"refs/heads/{revision}"] if revision else [HEAD]
        if re.fullmatch(r"[0-9a-f]{7,64}", revision):
            names.append(revision)
        found = (self.git("rev-parse", "--verify", "--quiet", f"{n}^{{commit}}") for n in names)
        return next((text.strip() for text in found if text), "")

    def fetch(self, *references: str, refused: str | None = None) -> None:
        """Fetch the references; the repository may be a shallow one, as a CI runner's."""
        options = ("--quiet", "--prune", "--update-shallow", "--no-recurse-submodules")
        self.git("fetch", *options, "--", self.url, *references, refused=refused)

    def export(self, revision: str, folder: Path) -> str:
        """Put the tree of a revision ("" is the default branch) into the folder; return its commit.

        A full commit id that the mirror has needs no network.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        unusable = f"app_source: the mirror {self.path} cannot be used, remove it"
        cannot = (
            f"app_source: git cannot fetch {self.name}; check the address, and that this user of "
            "the controller may read it"
        )
        # Several hosts of a play may ask for the same repository at once.
        with (self.path / "poolkit.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.git("init", "--quiet", "--bare", "--template=", refused=unusable)
            complete = bool(re.fullmatch(FULL_COMMIT_ID, revision))
            commit = self.commit(revision) if complete else ""
            if not commit:
                references = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
                self.fetch(*references, *([] if revision else [f"+HEAD:{HEAD}"]), refused=cannot)
                commit = self.commit(revision)
            if complete and not commit:
                # On no branch, as the commit of a pull request; not every server gives it.
                self.fetch(f"+{revision}:refs/poolkit/{revision}")
                commit = self.commit(revision)
            if not commit:
                raise SourceError(
                    f"app_source_revision: {self.name} has no branch, tag or commit {revision}"
                )
            archive = folder.with_suffix(".tar")
            self.git("archive", f"--output={archive}", commit, refused=unusable)
        unpack_tar(archive, folder, f"{self.name} at {commit[:12]}")
        return commit


def inside(folder: Path, name: str, archive: str) -> Path:
    """Return the path of an archive's member below the folder; refuse one that leads out of it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise SourceError(f"app_source: {archive} holds the unsafe path {name!r}: do not use it")
    return folder / path


def unpack_tar(archive: Path, folder: Path, name: str) -> None:
    """Unpack a tar archive; only files, directories and links that stay inside are taken.

    tarfile's own filter is not in Debian 12's Python 3.11.2.
    """
    folder.mkdir(exist_ok=True)
    links: dict[Path, str] = {}
    try:
        with tarfile.open(archive) as packed:
            members = [(inside(folder, member.name, name), member) for member in packed]
            linked = {path: member.name for path, member in members if member.issym()}
            for path, member in members:
                # A link could be made, or a file written, through another one.
                if over := next((linked[top] for top in path.parents if top in linked), None):
                    raise SourceError(
                        f"app_source: {name} holds {member.name!r} below the link {over!r}: do "
                        "not use it"
                    )
            for path, member in members:
                if member.isdir():
                    path.mkdir(parents=True, exist_ok=True)
                elif member.issym():
                    links[path] = member.linkname
                elif (content := packed.extractfile(member)) is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with content, path.open("wb") as file:
                        shutil.copyfileobj(content, file)
                    path.chmod(0o755 if member.mode & 0o100 else 0o644)
                else:
                    raise SourceError(f"app_source: {name} holds the device {member.name!r}")
    except (tarfile.TarError, EOFError, KeyError, zlib.error) as failure:
        raise SourceError(f"app_source: {name} cannot be unpacked: {failure}") from None
    # Links come last, and none is below another: nothing is written through one.
    for path, target in links.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path):
            raise SourceError(
                f"app_source: {name} holds {path.relative_to(folder)} twice: do not use it"
            )
        path.symlink_to(target)
    for path in links:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise SourceError(
                f"app_source: {name} holds the link {path.relative_to(folder)}, which leads out of "
                f"it ({links[path]}): put the file there"
            )


def unpack_sdist(archive: Path, folder: Path) -> Path:
    """Unpack an sdist; return its one directory."""
    unpack_tar(archive, folder, str(archive))
    entries = list(folder.iterdir())
    if len(entries) != 1 or not entries[0].is_dir() or entries[0].is_symlink():
        names = ", ".join(sorted(entry.name for entry in entries)[:5]) or "nothing"
        raise SourceError(
            f"app_source: {archive} is no sdist, which holds one directory; it holds {names}"
        )
    return entries[0]


def unpack_wheel(archive: Path, folder: Path) -> None:
    """Unpack a wheel's modules and metadata; its scripts, headers and data are left out."""
    folder.mkdir(exist_ok=True)
    try:
        with zipfile.ZipFile(archive) as packed:
            for member in packed.infolist():
                inside(folder, member.filename, str(archive))
                top, *rest = PurePosixPath(member.filename).parts or [""]
                name = member.filename
                if top.endswith(".data"):
                    if rest[:1] not in (["purelib"], ["platlib"]):
                        continue
                    name = "/".join(rest[1:])
                if member.is_dir() or not name:
                    continue
                if re.search(r"\.(so|pyd|dylib)(\.|$)", name):
                    raise SourceError(
                        f"app_source: {archive} holds the compiled module {name}, which fits one "
                        "platform only: put this package into the requirements file, and give "
                        "app_source a wheel of pure Python"
                    )
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(packed.read(member))
    except (zipfile.BadZipFile, RuntimeError, EOFError, zlib.error) as failure:
        raise SourceError(f"app_source: {archive} cannot be unpacked: {failure}") from None


@contextlib.contextmanager
def source_tree(source: str, revision: str, cache: Path) -> Iterator[Tree]:
    """Give the source as a directory, a temporary one unless it is one already.

    cache: where the mirrors of git repositories are kept.
    """
    kind = source_kind(source, revision)
    path = Path(source)
    if not is_git_url(source):
        path = Path(os.path.expandvars(source)).expanduser()
        if kind in ("directory", "git") and not path.is_dir():
            raise SourceError(f"app_source: there is no directory {path} on the controller")
        if kind in ("wheel", "sdist") and not path.is_file():
            raise SourceError(f"app_source: there is no file {path} on the controller")
    if kind == "directory":
        yield Tree(path, str(path))
        return
    with tempfile.TemporaryDirectory(prefix="poolkit-source-") as temporary:
        folder = Path(temporary, "source")
        if kind == "git":
            mirror = Mirror(source if is_git_url(source) else str(path.absolute()), cache)
            commit = mirror.export(revision, folder)
            yield Tree(folder, f"{mirror.name} at {commit[:12]}", commit)
        elif kind == "wheel":
            unpack_wheel(path, folder)
            yield Tree(folder, str(path))
        else:
            yield Tree(unpack_sdist(path, folder), str(path))
