"""Two clones and one remote: a local folder, a server that speaks S3, one that speaks SSH, a web server of plain files,
all on this machine.
"""

import asyncio
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from configparser import RawConfigParser
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import Request, urlopen

import asyncssh
import boto3
import numpy as np
import pytest
from clones import change, commit, ended, outputs, run_in, small_run, stages_run
from moto.core import enable_iam_authentication
from moto.server import ThreadedMotoServer

import ddpm

# No proxy and no retries stand between these tests and the servers they start.
LOCAL = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "AWS_MAX_ATTEMPTS": "1"}
POLICY = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
CACHED = ["train", "generate", "fid", "likelihood", "visualize", "export"]
# Settings of which all results are in the cache, but in no commit.
OTHER = {"train.lr": 0.02, "visualize.snapshots": 2}
MISSING = "https://error.dvc.org/missing-files"


@dataclass(frozen=True)
class Remote:
    """Where a team's data lies: what Git may hold of it, and what only .dvc/config.local may."""

    url: str
    options: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)

    def add(self, clone: Path) -> None:
        """Set the remote up, with the credentials, by the commands of the documents; commit what Git may hold."""
        run_in(clone, "dvc", "remote", "add", "--default", "team", self.url)
        for key, value in {"verify": "true", **self.options}.items():
            run_in(clone, "dvc", "remote", "modify", "team", key, value)
        for key, value in self.secrets.items():
            run_in(clone, "dvc", "remote", "modify", "--local", "team", key, value)
        commit(clone, "remote")


def modify(clone: Path, settings: Mapping[str, str]) -> None:
    """What `dvc remote modify --local team KEY VALUE` writes for each: DVC takes more than a second to start."""
    file, section = clone / ".dvc/config.local", "'remote \"team\"'"
    config = RawConfigParser()
    config.read(file)
    config.read_dict({section: settings})
    with file.open("w") as written:
        config.write(written)


@contextmanager
def s3_server() -> Iterator[tuple[str, dict[str, str]]]:
    """A server that speaks S3 and checks signatures: its address, and the credentials of one who may do everything."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    first = {"aws_access_key_id": "first", "aws_secret_access_key": "first", "region_name": "us-east-1"}
    try:
        boto3.client("s3", endpoint_url=address, **first).create_bucket(Bucket="team")
        iam = boto3.client("iam", endpoint_url=address, **first)
        iam.create_user(UserName="member")
        iam.put_user_policy(UserName="member", PolicyName="all", PolicyDocument=json.dumps(POLICY))
        made = iam.create_access_key(UserName="member")["AccessKey"]
        with enable_iam_authentication():
            yield address, {"access_key_id": made["AccessKeyId"], "secret_access_key": made["SecretAccessKey"]}
    finally:
        # What such servers hold outlives them in this process.
        urlopen(Request(f"{address}/moto-api/reset", method="POST")).close()
        server.stop()


@contextmanager
def ssh_server(folder: Path, client: asyncssh.SSHKey) -> Iterator[int]:
    """A server that speaks SFTP, lets in one key and shows one folder: its port."""
    known = asyncssh.import_authorized_keys(client.export_public_key().decode())
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def listen() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            authorized_client_keys=known,
            sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=os.fsencode(folder)),
        )

    acceptor = asyncio.run_coroutine_threadsafe(listen(), loop).result(30)
    try:
        yield acceptor.get_port()
    finally:
        loop.call_soon_threadsafe(acceptor.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)


@contextmanager
def web_server(folder: Path) -> Iterator[str]:
    """Python's own server of the files of a folder, which can only be read: its address."""
    command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(folder), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            yield f"http://127.0.0.1:{server.stdout.readline().split(' port ')[1].split()[0]}"
        finally:
            server.terminate()


def key_file(path: Path, key: asyncssh.SSHKey) -> str:
    path.write_bytes(key.export_private_key())
    path.chmod(0o600)
    return str(path)


@pytest.fixture(autouse=True)
def _no_proxy_no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LOCAL.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, raw: Path) -> Path:
    """A committed run; the cache also holds the results of OTHER."""
    folder = tmp_path_factory.mktemp("sharing") / "run"
    shutil.copytree(small_run(tmp_path_factory.getbasetemp(), raw).folder, folder, symlinks=True)
    change(folder, OTHER)
    assert stages_run(run_in(folder, "dvc", "repro")) == [*CACHED, "summary", "report"]
    run_in(folder, "git", "checkout", "--quiet", "--force", "HEAD")
    run_in(folder, "dvc", "checkout", "--force")
    return folder


@dataclass(frozen=True)
class Team:
    """One who ran the pipeline, the Git repository they share, and their remote."""

    mine: Path
    origin: Path
    remote: Remote

    def join(self, folder: Path, *, pull: bool = True) -> Path:
        """A teammate's clone, with the data unless told otherwise."""
        run_in(folder.parent, "git", "clone", "--quiet", str(self.origin), str(folder))
        if self.remote.secrets:
            modify(folder, self.remote.secrets)
        if pull:
            run_in(folder, "dvc", "pull")
        return folder


def assemble(run: Path, folder: Path, remote: Remote) -> Team:
    mine, origin = folder / "mine", folder / "origin.git"
    shutil.copytree(run, mine, symlinks=True)
    remote.add(mine)
    run_in(folder, "git", "clone", "--quiet", "--bare", str(mine), str(origin))
    run_in(mine, "git", "remote", "add", "origin", str(origin))
    run_in(mine, "dvc", "push")
    return Team(mine, origin, remote)


SERVERS = [pytest.param(kind, marks=pytest.mark.long) for kind in ("s3", "ssh")]


@pytest.fixture(scope="module", params=["folder", *SERVERS])
def team(request: pytest.FixtureRequest, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """A team whose first member has pushed the run."""
    folder = tmp_path_factory.mktemp(f"team-{request.param}")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in LOCAL.items():
            patch.setenv(name, value)
        if request.param == "folder":
            yield request.getfixturevalue("folder_team")
        elif request.param == "s3":
            with s3_server() as (address, secrets):
                options = {"endpointurl": address, "region": "us-east-1"}
                yield assemble(run, folder, Remote("s3://team/ddpm-mnist", options, secrets))
        else:
            key, shown = asyncssh.generate_private_key("ssh-ed25519"), folder / "shown"
            shown.mkdir()
            with ssh_server(shown, key) as port:
                secrets = {"keyfile": key_file(folder / "key", key)}
                yield assemble(run, folder, Remote(f"ssh://member@127.0.0.1:{port}/ddpm-mnist", secrets=secrets))


def test_results_go_to_a_teammate_and_their_change_comes_back(team: Team, tmp_path: Path):
    theirs = team.join(tmp_path / "theirs")
    assert stages_run(run_in(theirs, "dvc", "repro")) == []
    names = sorted(path.name for path in (team.mine / "data/generated").iterdir())
    assert len(names) == 160
    for name in names:
        assert (theirs / "data/generated" / name).read_bytes() == (team.mine / "data/generated" / name).read_bytes()

    change(theirs, {"visualize.snapshots": 2})
    assert stages_run(run_in(theirs, "dvc", "repro")) == ["visualize", "report"]
    commit(theirs, "two snapshots")
    run_in(theirs, "dvc", "push", "--run-cache")
    run_in(theirs, "git", "push", "--quiet", "origin", "main")

    before = (team.mine / "data/figures/reverse_process.png").read_bytes()
    run_in(team.mine, "git", "pull", "--quiet", "origin", "main")
    run_in(team.mine, "dvc", "pull")
    assert stages_run(run_in(team.mine, "dvc", "repro")) == []
    after = (team.mine / "data/figures/reverse_process.png").read_bytes()
    assert before != after == (theirs / "data/figures/reverse_process.png").read_bytes()


def test_git_holds_no_credentials(team: Team):
    assert ".dvc/config.local" not in run_in(team.mine, "git", "ls-files").splitlines()
    commits = run_in(team.origin, "git", "rev-list", "--all").split()
    for secret in team.remote.secrets.values():
        assert secret in (team.mine / ".dvc/config.local").read_text()
        assert ended(team.origin, "git", "grep", "--fixed-strings", secret, *commits).returncode == 1


def test_a_result_whose_lock_file_was_not_shared_is_not_computed_again(team: Team, tmp_path: Path):
    """Training, images, numbers and figures come from the run cache; `summary` only copies the numbers."""
    change(team.mine, OTHER)
    assert stages_run(run_in(team.mine, "dvc", "repro")) == ["summary"]
    expected, numbers = outputs(team.mine), (team.mine / "metrics/fid.json").read_bytes()
    run_in(team.mine, "dvc", "push", "--run-cache")
    run_in(team.mine, "git", "checkout", "--quiet", "--force", "HEAD")

    theirs = team.join(tmp_path / "theirs", pull=False)
    assert outputs(theirs)["data/generated"] != expected["data/generated"]
    change(theirs, OTHER)
    output = run_in(theirs, "dvc", "repro", "--pull", "--allow-missing")
    assert stages_run(output) == ["summary"]
    for name in (*CACHED, "report"):
        assert f"Stage '{name}' is cached - skipping run" in output
    assert outputs(theirs) == expected
    assert (theirs / "metrics/fid.json").read_bytes() == numbers
    assert len(list((theirs / "data/generated").iterdir())) == 160


@pytest.fixture(scope="module")
def folder_team(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Team:
    """A team that shares a local folder."""
    folder = tmp_path_factory.mktemp("folder")
    return assemble(run, folder, Remote(str(folder / "remote")))


def test_a_teammate_without_any_lock_file_computes_nothing_either(folder_team: Team, raw: Path, tmp_path: Path):
    """The commit from before the run: only the original files are fetched again, and the numbers copied."""
    expected = outputs(folder_team.mine)
    run_in(folder_team.mine, "dvc", "push", "--run-cache")
    theirs = folder_team.join(tmp_path / "theirs", pull=False)
    for path in [theirs / "dvc.lock", *(theirs / "metrics").glob("*.*")]:
        path.unlink()
    shutil.copytree(raw, theirs / "data/raw")
    output = run_in(theirs, "dvc", "repro", "--pull")
    assert stages_run(output) == ["fetch_mnist", "summary"]
    assert outputs(theirs) == expected
    for path in (folder_team.mine / "metrics").glob("*.*"):
        assert (theirs / "metrics" / path.name).read_bytes() == path.read_bytes(), path.name


def test_an_experiment_goes_to_a_teammate_through_git(folder_team: Team, tmp_path: Path):
    mine, theirs = (folder_team.join(tmp_path / name) for name in ("mine", "theirs"))
    run_in(mine, "dvc", "exp", "run", "--name", "few", "-S", "visualize.snapshots=4", "visualize")
    run_in(mine, "dvc", "exp", "push", "origin", "few")
    assert "few" in run_in(theirs, "dvc", "exp", "list", "origin")
    run_in(theirs, "dvc", "exp", "pull", "origin", "few")
    run_in(theirs, "dvc", "exp", "apply", "few")
    assert outputs(theirs) == outputs(mine)
    figure = "data/figures/reverse_process.png"
    assert (theirs / figure).read_bytes() == (mine / figure).read_bytes()
    assert hashlib.md5((theirs / figure).read_bytes()).hexdigest() == outputs(mine)[figure]


def test_a_registered_model_is_fetched_by_its_version_and_by_its_stage(folder_team: Team, tmp_path: Path):
    """The commands of docs/use.md: the model of a run by a name, from outside of any repository."""
    mine, origin = folder_team.join(tmp_path / "mine"), str(folder_team.origin)
    run_in(mine, "gto", "register", "mnist", "--version", "v1.0.0")
    run_in(mine, "git", "push", "--quiet", "origin", "mnist@v1.0.0")
    run_in(mine, "dvc", "push", "train")
    run_in(mine, "gto", "assign", "mnist", "--version", "v1.0.0", "--stage", "prod")
    run_in(mine, "git", "push", "--quiet", "origin", "--tags")
    weights = (mine / "data/model/best.safetensors").read_bytes()
    for number, by in enumerate((("--rev", "v1.0.0"), ("--stage", "prod"))):
        fetched = tmp_path / f"{number}.safetensors"
        run_in(tmp_path, "dvc", "artifacts", "get", origin, "mnist", *by, "-o", str(fetched))
        assert fetched.read_bytes() == weights
    assert np.asarray(ddpm.load(fetched).sample(2, labels=7, steps=3)).shape == (2, 1, 28, 28)
    unknown = ended(tmp_path, "dvc", "artifacts", "get", origin, "mnist", "--rev", "v2.0.0")
    assert unknown.returncode != 0


@pytest.mark.parametrize("verified", [True, False])
def test_a_damaged_object_of_the_remote_is_refused_if_verified(folder_team: Team, tmp_path: Path, verified: bool):
    theirs = folder_team.join(tmp_path / "theirs", pull=False)
    shutil.copytree(folder_team.remote.url, tmp_path / "damaged")
    run_in(theirs, "dvc", "remote", "modify", "team", "url", str(tmp_path / "damaged"))
    run_in(theirs, "dvc", "remote", "modify", "team", "verify", str(verified).lower())
    md5 = outputs(theirs)["data/trajectory.npz"]
    stored = tmp_path / "damaged/files/md5" / md5[:2] / md5[2:]
    content = bytearray(stored.read_bytes())
    content[100] ^= 255
    # As a disk would do it: the file stays read-only.
    mode = stored.stat().st_mode
    stored.chmod(0o600)
    stored.write_bytes(content)
    stored.chmod(mode)

    done = ended(theirs, "dvc", "pull")
    if verified:
        assert done.returncode == 1
        assert "Checkout failed for following targets:\ndata/trajectory.npz" in done.stderr
        assert not (theirs / "data/trajectory.npz").exists()
    else:
        assert done.returncode == 0
        assert (theirs / "data/trajectory.npz").read_bytes() == content


def refused(clone: Path, command: str) -> str:
    """What dvc says when it fails."""
    done = ended(clone, "dvc", command)
    assert done.returncode != 0, done.stdout
    return done.stderr


def test_an_empty_remote_and_a_folder_that_is_not_there_are_called_so(folder_team: Team, tmp_path: Path):
    theirs = folder_team.join(tmp_path / "theirs", pull=False)
    (tmp_path / "empty").mkdir()
    for name in ("empty", "not there"):
        run_in(theirs, "dvc", "remote", "modify", "team", "url", str(tmp_path / name))
        complaint = refused(theirs, "pull")
        assert "Checkout failed for following targets" in complaint
        assert MISSING in complaint


def test_s3_that_is_down_or_forbids_is_called_so(folder_team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # A machine of this vendor's would lend its own credentials.
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        (tmp_path / name).touch()
        monkeypatch.setenv(name, str(tmp_path / name))
    theirs = folder_team.join(tmp_path / "theirs", pull=False)
    with s3_server() as (address, secrets):
        modify(theirs, {"url": "s3://team/ddpm-mnist", "endpointurl": address, "region": "us-east-1"})
        assert "Unable to locate credentials" in refused(theirs, "pull")
        modify(theirs, secrets)
        assert MISSING in refused(theirs, "pull")
        modify(theirs, {"url": "s3://other-team/ddpm-mnist"})
        assert "The specified bucket does not exist" in refused(theirs, "pull")
        modify(theirs, {"url": "s3://team/ddpm-mnist", "secret_access_key": "wrong"})
        assert "Forbidden" in refused(theirs, "pull")
    assert "failed to connect to s3" in refused(theirs, "pull")


def test_ssh_that_is_down_or_forbids_is_called_so(folder_team: Team, tmp_path: Path):
    theirs = folder_team.join(tmp_path / "theirs", pull=False)
    known, other = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    (tmp_path / "shown").mkdir()
    with ssh_server(tmp_path / "shown", known) as port:
        address, key = f"ssh://member@127.0.0.1:{port}/ddpm-mnist", key_file(tmp_path / "known", known)
        modify(theirs, {"url": address, "keyfile": key})
        assert MISSING in refused(theirs, "pull")
        modify(theirs, {"keyfile": key_file(tmp_path / "other", other)})
        assert "Permission denied for user member" in refused(theirs, "pull")
        modify(theirs, {"keyfile": str(tmp_path / "nowhere")})
        assert "No such file or directory" in refused(theirs, "pull")
        modify(theirs, {"keyfile": key})
    assert "failed to connect to ssh" in refused(theirs, "pull")


@dataclass(frozen=True)
class Published:
    """A team that writes to a folder, which everyone reads by HTTP."""

    team: Team
    folder: Path
    address: str

    def objects(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def published(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    folder = tmp_path_factory.mktemp("published")
    (folder / "www").mkdir()
    with pytest.MonkeyPatch.context() as patch, web_server(folder / "www") as server:
        for name, value in LOCAL.items():
            patch.setenv(name, value)
        written, address = folder / "www/ddpm-mnist", f"{server}/ddpm-mnist"
        yield Published(assemble(run, folder, Remote(address, secrets={"url": str(written)})), written, address)


def test_anyone_reads_what_a_web_server_shows(published: Published, tmp_path: Path):
    theirs = tmp_path / "theirs"
    run_in(tmp_path, "git", "clone", "--quiet", str(published.team.origin), str(theirs))
    assert not (theirs / ".dvc/config.local").exists()
    run_in(theirs, "dvc", "pull")
    assert stages_run(run_in(theirs, "dvc", "repro")) == []
    assert outputs(theirs) == outputs(published.team.mine)
    for path in sorted((published.team.mine / "data").rglob("*")):
        if path.is_file():
            assert (theirs / path.relative_to(published.team.mine)).read_bytes() == path.read_bytes(), path


def test_a_clone_without_a_remote_reads_from_an_address_it_is_given(run: Path, published: Published, tmp_path: Path):
    theirs = tmp_path / "theirs"
    run_in(tmp_path, "git", "clone", "--quiet", str(run), str(theirs))
    run_in(theirs, "dvc", "remote", "add", "--default", "team", published.address)
    run_in(theirs, "dvc", "pull")
    assert len(list((theirs / "data/generated").iterdir())) == 160
    assert stages_run(run_in(theirs, "dvc", "repro")) == []


def test_what_http_cannot_do_is_called_so(published: Published, tmp_path: Path):
    run_in(published.team.mine, "dvc", "push", "--run-cache")
    before, theirs = published.objects(), tmp_path / "theirs"
    assert any("/runs/" in name for name in before)
    run_in(tmp_path, "git", "clone", "--quiet", str(published.team.origin), str(theirs))
    # The team has this result in its run cache, which does not go by HTTP.
    change(theirs, {"visualize.snapshots": 2})
    output = run_in(theirs, "dvc", "repro", "--pull", "--allow-missing")
    assert "run-cache is not supported for http" in output
    assert stages_run(output) == ["visualize", "report"]
    # The server refuses POST and closes before it has read the file: the reason is its answer or the broken pipe, by
    # which of the two the client sees first.
    complaint = refused(theirs, "push")
    assert re.search(r"failed to transfer .*(Unsupported method \('POST'\)|\[Errno \d+\] \w+)", complaint)
    assert "failed to push data to the cloud - 3 files failed to upload" in complaint  # two strips, the report
    assert published.objects() == before


def test_a_damaged_object_or_none_is_refused_over_http(published: Published, tmp_path: Path):
    shutil.copytree(published.folder, tmp_path / "www/ddpm-mnist")
    md5 = outputs(published.team.mine)["data/trajectory.npz"]
    stored = tmp_path / "www/ddpm-mnist/files/md5" / md5[:2] / md5[2:]
    stored.chmod(0o644)
    stored.write_bytes(stored.read_bytes()[:-1] + b"?")
    theirs = tmp_path / "theirs"
    run_in(tmp_path, "git", "clone", "--quiet", str(published.team.origin), str(theirs))
    with web_server(tmp_path / "www") as server:
        modify(theirs, {"url": f"{server}/ddpm-mnist"})
        assert "Checkout failed for following targets:\ndata/trajectory.npz" in refused(theirs, "pull")
        assert not (theirs / "data/trajectory.npz").exists()
    shutil.rmtree(theirs / ".dvc/cache")
    assert MISSING in refused(theirs, "pull")
