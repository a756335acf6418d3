"""What outlives every worker is made whole or not at all."""

import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.cache.layout import Geometry
from penstock.cache.segment import NoRoom, Segment
from penstock.gateway.config import Admin, Backend, Cache, Config, Listen, Model
from penstock.workers import rundir, store
from penstock.workers.foundation import CONTROL, CannotStart, Foundation

from ..support.procs import free_port


@pytest.fixture(autouse=True)
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with (
        tempfile.TemporaryDirectory() as name
    ):  # a socket's path has 107 bytes: pytest's own folders are too long
        folder = Path(name)
        monkeypatch.setattr(rundir, "base", lambda: folder)
        yield folder
        assert list(folder.iterdir()) == []


def _config(
    port: int | None = None, admin: int | None = None, uds: str | None = None, host: str = "127.0.0.1"
) -> Config:
    return Config(
        models={"m": Model(backends=(Backend(url="http://a"),))},
        listen=Listen(host=host, port=port or free_port(), uds=uds),
        admin=Admin(port=admin or free_port()),
        cache=Cache(mode="off"),  # nobody looks at what would be 4 GiB here
    )


def test_all_parts_are_there_and_gone_at_the_end(tmp_path: Path) -> None:
    made = Foundation.lay(_config(uds=str(tmp_path / "s")), tmp_path / "c.yaml", 2)
    assert len(made.tcp) == 2
    assert [len(made.of_worker(i)) for i in (0, 1)] == [2, 2]
    assert made.segment.geometry.slots == 4
    assert store.read_current(made.folder, made.segment).generation == 1
    made.remove()
    made.remove()
    assert not (tmp_path / "s").exists()


def test_a_port_that_a_gateway_has_is_refused_although_the_kernel_would_share_it(tmp_path: Path) -> None:
    config = _config()
    first = Foundation.lay(config, tmp_path / "a.yaml", 1)
    same_port = _config(port=config.listen.port)
    same_admin = _config(admin=config.admin.port)
    for other in (same_port, same_admin):
        with pytest.raises(CannotStart, match="a gateway already runs on"):
            Foundation.lay(other, tmp_path / "b.yaml", 1)
    first.remove()
    Foundation.lay(config, tmp_path / "a.yaml", 1).remove()


@pytest.mark.parametrize(
    ("first", "second"),
    [("127.0.0.1", "localhost"), ("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "::")],
)
def test_a_port_is_one_gateways_however_its_address_is_spelt(tmp_path: Path, first: str, second: str) -> None:
    port = free_port()
    held = Foundation.lay(_config(port=port, host=first), tmp_path / "a.yaml", 1)
    with pytest.raises(CannotStart, match=f"a gateway already runs on {first}:{port}"):
        Foundation.lay(_config(port=port, host=second), tmp_path / "b.yaml", 1)
    held.remove()


def test_two_specific_addresses_have_the_same_port_side_by_side(tmp_path: Path) -> None:
    port = free_port()
    one = Foundation.lay(_config(port=port), tmp_path / "a.yaml", 1)
    other = Foundation.lay(_config(port=port, host="127.0.0.2"), tmp_path / "a.yaml", 1)
    one.remove()
    other.remove()


def test_a_unix_path_that_somebody_listens_on_is_refused_and_a_stale_one_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        with pytest.raises(CannotStart, match="somebody listens"):
            Foundation.lay(_config(uds=path), tmp_path / "c.yaml", 1)
    Foundation.lay(_config(uds=path), tmp_path / "c.yaml", 1).remove()


def test_a_file_that_is_not_a_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(CannotStart):
        Foundation.lay(_config(uds=str(path)), tmp_path / "c.yaml", 1)
    assert path.read_text() == "precious"


def test_without_room_for_the_segment_nameless_memory_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Segment.create.__func__  # type: ignore[attr-defined]

    def full(cls: type[Segment], path: str | None, geometry: Geometry, **owner: int) -> Segment:
        if path is not None:
            raise NoRoom("/dev/shm", 1, 0)
        made: Segment = create(cls, path, geometry, **owner)
        return made

    monkeypatch.setattr(Segment, "create", classmethod(full))
    made = Foundation.lay(_config(), tmp_path / "c.yaml", 1)
    child = Segment.attach(made.segment.fd)
    assert store.read_current(made.folder, child).generation == 1
    child.close()
    made.remove()


def test_a_run_directory_is_mended_from_what_was_seen_last(tmp_path: Path) -> None:
    made = Foundation.lay(_config(), tmp_path / "c.yaml", 1)
    assert not made.mend()
    following = store.following(_config(), made.current())
    made.segment.publish_generation(2, store.write(made.folder, following))
    assert made.current().generation == 2
    owner = rundir.read_owner(made.folder)
    shutil.rmtree(made.folder)
    assert made.mend()
    assert store.read_current(made.folder, made.segment) == following
    assert rundir.read_owner(made.folder) == owner
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(made.folder / CONTROL))
    assert not made.mend()
    made.remove()


def test_a_generation_that_was_never_seen_is_not_made_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = Foundation.lay(_config(), tmp_path / "c.yaml", 1)
    made.segment.publish_generation(2, 0)
    assert not made.mend()
    assert "run_directory_lost" in caplog.text
    assert not (made.folder / "config-2.msgpack").exists()
    made.remove()


def test_a_run_directory_that_somebody_else_put_there_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = Foundation.lay(_config(), tmp_path / "c.yaml", 1)
    shutil.rmtree(made.folder)
    made.folder.symlink_to(tmp_path)
    assert not made.mend()
    assert "run_directory_lost" in caplog.text
    made.folder.unlink()
    made.remove()
