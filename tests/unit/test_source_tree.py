"""A source from git, a wheel or an sdist: what it gives, what it keeps secret, what it refuses."""

import base64
import http.server
import io
import os
import re
import socket
import subprocess
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_source_archive import contents

from plugins.module_utils import source_tree
from plugins.module_utils.source_tree import Mirror, SourceError

PASSWORD = "s3cret/@#word"
URL_PASSWORD = "s3cret%2F%40%23word"
TOKEN = "ghp_s3cret-token"


def git(repository: Path, *arguments: str) -> str:
    author = ("-c", "user.name=T", "-c", "user.email=t@example.com")
    done = subprocess.run(
        ["git", "-C", str(repository), *author, *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def commit(repository: Path, text: str) -> str:
    (repository / "app.py").write_text(text)
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", text)
    return git(repository, "rev-parse", "HEAD")


@pytest.fixture(autouse=True)
def plain_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of the person who runs the tests."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Branch main: text "one" (tag v1, annotated), then "two"; branch topic/a: "three"."""
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    (root / "requirements.txt").write_text("gunicorn==27.0.1\n")
    commit(root, "one")
    git(root, "tag", "-a", "-m", "v1", "v1")
    commit(root, "two")
    git(root, "checkout", "-q", "-b", "topic/a")
    commit(root, "three")
    git(root, "checkout", "-q", "main")
    return root


def text_of(source: str, revision: str, cache: Path) -> tuple[str, str]:
    """Return what app.py says in a revision, and the commit id."""
    with source_tree.source_tree(source, revision, cache) as tree:
        return (tree.path / "app.py").read_text(), tree.revision


# Kinds of sources.


@pytest.mark.parametrize(
    ("source", "revision", "kind"),
    [
        ("/srv/shop", "", "directory"),
        ("shop", "", "directory"),
        ("/srv/shop", "main", "git"),
        ("https://example.com/shop.git", "", "git"),
        ("ssh://git@example.com/shop", "v1", "git"),
        ("file:///srv/shop.git", "", "git"),
        ("git@example.com:team/shop.git", "v1", "git"),
        ("/srv/user@host/a:b", "", "directory"),
        ("dist/shop-1-py3-none-any.whl", "", "wheel"),
        ("/srv/shop-1.tar.gz", "", "sdist"),
    ],
)
def test_kind(source: str, revision: str, kind: str) -> None:
    assert source_tree.source_kind(source, revision) == kind


@pytest.mark.parametrize(
    ("source", "revision", "words"),
    [
        ("/srv/shop.whl", "v1", "app_source_revision: a wheel has no revisions"),
        ("https://me:pw@example.com/s.tar.gz", "", "https://example.com/s.tar.gz is the address"),
    ],
)
def test_kind_that_makes_no_sense(source: str, revision: str, words: str) -> None:
    with pytest.raises(SourceError, match=re.escape(words)):
        source_tree.source_kind(source, revision)


def test_option_is_no_address() -> None:
    """git and ssh would take such an address as an option that runs a command."""
    assert not source_tree.is_git_url("-oProxyCommand=x@host:path")
    assert not source_tree.is_git_url("--upload-pack=x://host")
    assert not source_tree.is_git_url("ext::sh -c x")


@pytest.mark.parametrize(
    ("revision", "text"),
    [("", "two"), ("main", "two"), ("v1", "one"), ("topic/a", "three")],
)
def test_revision_of_a_directory_and_of_a_url(
    repository: Path, tmp_path: Path, revision: str, text: str
) -> None:
    found = text_of(f"file://{repository}", revision, tmp_path / "git")
    assert found == (text, git(repository, "rev-parse", f"{revision or 'HEAD'}^{{commit}}"))
    if revision:
        assert text_of(str(repository), revision, tmp_path / "git") == found


def test_short_and_full_commit_ids(repository: Path, tmp_path: Path) -> None:
    first = git(repository, "rev-parse", "v1^{commit}")
    assert text_of(f"file://{repository}", first[:10], tmp_path / "git") == ("one", first)
    assert text_of(f"file://{repository}", first, tmp_path / "git") == ("one", first)


def test_branch_moves_and_disappears(repository: Path, tmp_path: Path) -> None:
    url, cache = f"file://{repository}", tmp_path / "git"
    text_of(url, "topic/a", cache)
    git(repository, "branch", "-q", "-D", "topic/a")
    git(repository, "checkout", "-q", "-b", "topic")  # in the place of topic/
    commit(repository, "four")
    assert text_of(url, "topic", cache)[0] == "four"
    with pytest.raises(SourceError, match="no branch, tag or commit topic/a"):
        text_of(url, "topic/a", cache)
    git(repository, "commit", "-q", "--amend", "-m", "rewritten")
    assert text_of(url, "topic", cache)[1] == git(repository, "rev-parse", "topic")


def test_known_commit_needs_no_network(repository: Path, tmp_path: Path) -> None:
    url, cache = f"file://{repository}", tmp_path / "git"
    _, commit_id = text_of(url, "v1", cache)
    repository.rename(tmp_path / "gone")
    assert text_of(url, commit_id, cache) == ("one", commit_id)
    with pytest.raises(SourceError, match="cannot fetch file://"):
        text_of(url, "v1", cache)


def test_commit_of_a_detached_shallow_checkout(repository: Path, tmp_path: Path) -> None:
    """What a CI runner has: a short history, and a commit on no branch."""
    checkout = tmp_path / "checkout"
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{repository}", str(checkout))
    assert text_of(str(checkout), "main", tmp_path / "git")[0] == "two"
    git(checkout, "checkout", "-q", "--detach")
    commit_id = commit(checkout, "five")
    assert text_of(str(checkout), commit_id, tmp_path / "git") == ("five", commit_id)


def test_nothing_of_a_repository_runs(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = tmp_path / "template/hooks"
    template.mkdir(parents=True)
    for folder in (template, repository / ".git/hooks"):
        for name in ("post-checkout", "reference-transaction", "post-update"):
            (folder / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
            (folder / name).chmod(0o755)
    (tmp_path / "gitconfig").write_text(
        f"[init]\ntemplateDir = {template.parent}\n[core]\nhooksPath = {template}\n"
    )
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(tmp_path / "objects"))
    assert text_of(f"file://{repository}", "", tmp_path / "git")[0] == "two"
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "objects").exists()
    assert not list((tmp_path / "git").rglob("hooks"))


def test_hosts_of_a_play_share_the_mirror(repository: Path, tmp_path: Path) -> None:
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(text_of(str(repository), "main", tmp_path)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [text for text, _ in found] == ["two"] * 6


def test_module_packs_a_revision(
    repository: Path, tmp_path: Path, pack_source: Callable[..., dict]
) -> None:
    done = pack_source(source=str(repository), revision="v1")
    assert done["revision"] == git(repository, "rev-parse", "v1^{commit}")
    files = contents(done["archive"])
    assert files["app.py"] == b"one"
    assert not [name for name in files if name.startswith(".git")]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["archives", "git"]


def test_errors_name_the_repository_and_not_its_copy(
    repository: Path, pack_source: Callable[..., dict]
) -> None:
    (repository / "settings.py").symlink_to("missing.py")
    commit_id = commit(repository, "linked")
    error = pack_source(source=str(repository), revision="main")["msg"]
    assert f"{repository} at {commit_id[:12]}/settings.py" in error
    assert "poolkit-source-" not in error


@pytest.mark.parametrize(
    ("revision", "words"),
    [
        ("v2", "app_source_revision: {url} has no branch, tag or commit v2"),
        ("0" * 40, "has no branch, tag or commit " + "0" * 40),
        ("--help", "has no branch, tag or commit --help"),
        ("a b^..", "has no branch, tag or commit a b^.."),
    ],
)
def test_unknown_revision(repository: Path, tmp_path: Path, revision: str, words: str) -> None:
    url = f"file://{repository}"
    with pytest.raises(SourceError) as refused:
        text_of(url, revision, tmp_path / "git")
    assert words.format(url=url) in str(refused.value)


def test_directory_that_is_no_repository(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with pytest.raises(SourceError) as refused:
        text_of(f"{tmp_path}/plain", "main", tmp_path / "git")
    assert f"app_source: git cannot fetch {tmp_path}/plain" in str(refused.value)
    assert "does not appear to be a git repository" in str(refused.value)


def test_missing_git_is_named(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(SourceError, match="git is not installed on the controller"):
        text_of(str(repository), "main", tmp_path / "git")


def test_link_out_of_a_repository_is_refused(repository: Path, tmp_path: Path) -> None:
    (repository / "settings.py").symlink_to("/etc/hostname")
    commit(repository, "linked")
    with pytest.raises(SourceError) as refused:
        text_of(str(repository), "main", tmp_path / "git")
    assert "holds the link settings.py, which leads out of it" in str(refused.value)


def test_silent_server_ends_in_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/shop.git"
        began = time.monotonic()
        with pytest.raises(SourceError, match=f"git fetch of {url} did not end within 1 seconds"):
            Mirror(url, tmp_path / "git", timeout=1).export("main", tmp_path / "out")
        assert time.monotonic() - began < 10
    assert url not in commands()


# Credentials.


def commands() -> str:
    """Return the command lines of all processes."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(lines)


@pytest.fixture
def server(repository: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve the repository over HTTP to user me, and to a token that is a user without a password.

    Gives its address and all command lines seen.
    """
    git(repository, "update-server-info")
    expected = {
        "Basic " + base64.b64encode(login.encode()).decode()
        for login in (f"me:{PASSWORD}", f"{TOKEN}:", f"x:{TOKEN}")
    }
    seen: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(repository / ".git"))

        def do_GET(self) -> None:
            seen.append(commands())
            if self.headers.get("Authorization") in expected:
                return super().do_GET()
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{web.server_port}", seen
        web.shutdown()


@pytest.mark.parametrize("login", [f"me:{URL_PASSWORD}", TOKEN, f"{TOKEN}:", f"x:{TOKEN}"])
def test_password_reaches_git_and_nothing_else(
    server: tuple[str, list[str]], pack_source: Callable[..., dict], tmp_path: Path, login: str
) -> None:
    """Neither does a token, with or without a user beside it."""
    address, seen = server
    helper = tmp_path / "helper"
    helper.write_text("#!/bin/sh\necho username=other; echo password=other\n")
    helper.chmod(0o755)
    if ":" in login:
        (tmp_path / "gitconfig").write_text(f"[credential]\nhelper = {helper}\n")
    done = pack_source(source=f"http://{login}@{address}/", revision="main")
    assert contents(done["archive"])["app.py"] == b"two"
    assert done["invocation"]["module_args"]["source"] == f"http://{address}/"
    assert seen
    assert any(f"http://{address}/" in lines for lines in seen)
    for lines in (*seen, str(done)):
        assert "s3cret" not in lines
    for path in (tmp_path / "cache/git").rglob("*"):
        assert not path.is_file() or b"s3cret" not in path.read_bytes()


def test_password_of_the_operators_helper(
    server: tuple[str, list[str]], pack_source: Callable[..., dict], tmp_path: Path
) -> None:
    """It is asked for the URL's user, and goes before our guess that this is a token."""
    helper = tmp_path / "helper"
    helper.write_text(
        "#!/bin/sh\ntest $1 = get || exit 0\n"
        f"grep -qx username=me && echo username=me && echo 'password={PASSWORD}'\n"
    )
    helper.chmod(0o755)
    (tmp_path / "gitconfig").write_text(f"[credential]\nhelper = {helper}\n")
    done = pack_source(source=f"http://me@{server[0]}/", revision="main")
    assert contents(done["archive"])["app.py"] == b"two"


@pytest.mark.parametrize("user", ["me:s3cret-wrong@", "s3cret-token@", "s3cret-token:@", ""])
def test_refused_password_is_not_shown_and_not_asked_for(
    server: tuple[str, list[str]],
    pack_source: Callable[..., dict],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    user: str,
) -> None:
    window = tmp_path / "window"
    window.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\n")
    window.chmod(0o755)
    monkeypatch.setenv("GIT_ASKPASS", str(window))
    monkeypatch.setenv("SSH_ASKPASS", str(window))
    done = pack_source(source=f"http://{user}{server[0]}/", revision="main")
    assert done["failed"] is True
    assert f"app_source: git cannot fetch http://{server[0]}/" in done["msg"]
    assert "s3cret" not in str(done)
    assert not (tmp_path / "asked").exists()
    if not user:
        assert "terminal prompts disabled" in done["msg"]


@pytest.mark.parametrize(
    "url",
    [
        "https://me:s3cret/x@example.com/shop.git",
        "https://me:123/s3cret@example.com/shop.git",
        "https://me:s3cret#x@example.com/shop.git",
        "https://me:s3cret@[example.com/shop.git",
    ],
)
def test_unreadable_url_is_not_shown(url: str, pack_source: Callable[..., dict]) -> None:
    done = pack_source(source=url)
    assert "percent form" in done["msg"]
    assert "s3cret" not in str(done)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("x 'https://me:pw@host/a' y", "x 'https://host/a' y"),
        ("HTTPS://token@host:8443/a", "HTTPS://host:8443/a"),
        ("ssh://git@host/a", "ssh://git@host/a"),
        ("ssh://git:pw@host/a", "ssh://git@host/a"),
        ("git@host:team/a", "git@host:team/a"),
        ("/srv/me@host", "/srv/me@host"),
    ],
)
def test_without_credentials(text: str, shown: str) -> None:
    assert source_tree.without_credentials(text) == shown


# Wheels and sdists.


def wheel(path: Path, **files: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {"shop-1.dist-info/METADATA": "Name: shop\n", **files}.items():
            archive.writestr(name, text)
    return path


def sdist(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def member(
    name: str, kind: bytes = tarfile.REGTYPE, linkname: str = "", mode: int = 0o644
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, linkname, mode
    return info


def test_module_packs_a_wheel(tmp_path: Path, pack_source: Callable[..., dict]) -> None:
    source = wheel(
        tmp_path / "shop-1-py3-none-any.whl",
        **{
            "shop/__init__.py": "a",
            "shop-1.data/purelib/pure.py": "b",
            "shop-1.data/platlib/shop/plat.py": "c",
            "shop-1.data/scripts/run": "d",
            "shop-1.data/data/etc/x": "e",
        },
    )
    (tmp_path / "locked.txt").write_text("gunicorn==1\n")
    done = pack_source(source=str(source), requirements=f"{tmp_path}/locked.txt")
    assert contents(done["archive"]) == {
        "shop/__init__.py": b"a",
        "pure.py": b"b",
        "shop/plat.py": b"c",
        "shop-1.dist-info/METADATA": b"Name: shop\n",
        "requirements.txt": b"gunicorn==1\n",
        ".poolkit-release": b"python3",
    }
    assert (done["python_path"], done["revision"]) == (["."], "")
    error = pack_source(source=str(source))["msg"]
    assert f"app_requirements: {source} has no requirements.txt: give the absolute path" in error


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../x.py", "the unsafe path '../x.py'"),
        ("/x.py", "the unsafe path '/x.py'"),
        ("shop/../../x.py", "the unsafe path"),
        ("shop-1.data/purelib/../../../x.py", "the unsafe path"),
        ("shop/fast.cpython-312-x86_64-linux-gnu.so", "the compiled module shop/fast.cpython"),
        ("shop.libs/libpq.so.5", "which fits one platform"),
        ("shop-1.data/platlib/fast.so", "the compiled module fast.so"),
    ],
)
def test_unusable_wheel(tmp_path: Path, name: str, words: str) -> None:
    source = wheel(tmp_path / "shop-1.whl", **{name: "x"})
    with pytest.raises(SourceError) as refused, source_tree.source_tree(str(source), "", tmp_path):
        pass
    assert str(refused.value).startswith(f"app_source: {source} holds the ")
    assert words in str(refused.value)
    assert not list(tmp_path.rglob("x.py"))


def test_module_packs_an_sdist(tmp_path: Path, pack_source: Callable[..., dict]) -> None:
    source = sdist(
        tmp_path / "shop-1.tar.gz",
        (member("shop-1", tarfile.DIRTYPE, mode=0o755), b""),
        (member("shop-1/pyproject.toml"), b""),
        (member("shop-1/requirements.txt"), b"gunicorn==1\n"),
        (member("shop-1/manage.py", mode=0o755), b"m"),
        (member("shop-1/src/shop/a.py"), b"a"),
        (member("shop-1/src/shop/hard.py", tarfile.LNKTYPE, "shop-1/src/shop/a.py"), b""),
        (member("shop-1/src/shop/soft.py", tarfile.SYMTYPE, "a.py"), b""),
    )
    done = pack_source(source=str(source), required_files=["manage.py"])
    assert contents(done["archive"]) == {
        "pyproject.toml": b"",
        "requirements.txt": b"gunicorn==1\n",
        "manage.py": b"m",
        "src/shop/a.py": b"a",
        "src/shop/hard.py": b"a",
        "src/shop/soft.py": b"a",
        ".poolkit-release": b"python3",
    }
    with tarfile.open(done["archive"]) as archive:
        assert archive.getmember("manage.py").mode == 0o755
    assert done["python_path"] == [".", "src"]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([member("../x.py")], "unsafe path '../x.py'"),
        ([member("/x.py")], "unsafe path '/x.py'"),
        ([member("a/x"), member("b/x")], "it holds a, b"),
        ([member("x.py")], "it holds x.py"),
        ([], "it holds nothing"),
        ([member("a/x", tarfile.SYMTYPE, "../../x")], "the link a/x, which leads out"),
        ([member("a/x", tarfile.SYMTYPE, "/etc/passwd")], "the link a/x, which leads out"),
        ([member("a/x", tarfile.FIFOTYPE)], "the device 'a/x'"),
        ([member("a/x", tarfile.LNKTYPE, "a/none")], "cannot be unpacked"),
        (
            [
                member("a/x", tarfile.SYMTYPE, "../../x"),
                member("a/y", tarfile.LNKTYPE, "a/x"),
            ],
            "cannot be unpacked",
        ),
        ([member("a/x"), member("a/x", tarfile.SYMTYPE, "y")], "holds a/x twice"),
        ([member("a/x/y"), member("a/x", tarfile.SYMTYPE, ".")], "'a/x/y' below the link 'a/x'"),
        (
            [
                member("a/d/e/up", tarfile.SYMTYPE, "../.."),
                member("a/m", tarfile.SYMTYPE, "d/e/up/../../x"),
            ],
            "the link a/m, which leads out",
        ),
    ],
)
def test_unusable_sdist(tmp_path: Path, members: list[tarfile.TarInfo], words: str) -> None:
    source = sdist(tmp_path / "shop.tar.gz", *((info, b"") for info in members))
    with pytest.raises(SourceError) as refused, source_tree.source_tree(str(source), "", tmp_path):
        pass
    assert words in str(refused.value)
    assert str(refused.value).startswith(f"app_source: {source} ")
    assert not list(tmp_path.rglob("x.py"))


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE])
@pytest.mark.parametrize("link_first", [True, False])
def test_nothing_is_written_through_a_link(tmp_path: Path, kind: bytes, link_first: bool) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    members = [
        (member("a/out", tarfile.SYMTYPE, str(outside)), b""),
        (member("a/out/x.py", kind, "/etc/hostname"), b""),
    ]
    source = sdist(tmp_path / "shop.tar.gz", *(members if link_first else members[::-1]))
    with (
        pytest.raises(SourceError, match=r"'a/out/x\.py' below the link 'a/out'"),
        source_tree.source_tree(str(source), "", tmp_path),
    ):
        pass
    assert list(outside.iterdir()) == []


def test_link_in_a_wheel_is_a_file(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    source = wheel(tmp_path / "shop-1-py3-none-any.whl")
    link = zipfile.ZipInfo("out")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr(link, str(outside))
        archive.writestr("out/x.py", "x")
    with pytest.raises(OSError), source_tree.source_tree(str(source), "", tmp_path):
        pass
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("name", ["shop.whl", "shop.tar.gz"])
def test_broken_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(os.urandom(100))
    for source, words in ((name, "cannot be unpacked"), (f"no-{name}", "there is no file")):
        with (
            pytest.raises(SourceError) as refused,
            source_tree.source_tree(f"{tmp_path}/{source}", "", tmp_path),
        ):
            pass
        assert words in str(refused.value)
        assert f"{tmp_path}/{source}" in str(refused.value)
