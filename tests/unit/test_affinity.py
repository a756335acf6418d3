"""The plan of workers and cores, and what a cgroup grants."""

from pathlib import Path

import pytest

from penstock.workers.affinity import Plan, plan, read_quota


def test_below_eight_cores_every_core_gets_a_worker() -> None:
    assert plan(range(4), None) == Plan(workers=(0, 1, 2, 3), control=())


def test_from_eight_cores_up_one_is_left_to_the_controller_and_one_to_the_system() -> None:
    assert plan(range(8), None) == Plan(workers=(2, 3, 4, 5, 6, 7), control=(1,))


def test_only_cores_of_the_mask_are_used() -> None:
    assert plan({5, 9}, None).workers == (5, 9)


def test_a_quota_below_the_mask_decides_the_count_and_pins_nobody() -> None:
    assert plan(range(64), 4.0) == Plan(workers=(None,) * 4, control=())


def test_a_quota_is_rounded_down_but_never_to_nothing() -> None:
    assert len(plan(range(4), 2.9).workers) == 2
    assert len(plan(range(4), 0.3).workers) == 1


def test_a_quota_above_the_mask_changes_nothing() -> None:
    assert plan(range(2), 16.0) == plan(range(2), None)


def test_a_given_count_is_kept_and_cores_are_shared_in_turn() -> None:
    assert plan(range(2), None, count=3).workers == (0, 1, 0)


def test_a_single_worker_leaves_the_first_core_to_the_system() -> None:
    assert plan(range(8), None, count=1) == Plan(workers=(2,), control=(1, 3, 4, 5, 6, 7))


def test_named_cores_are_used_in_their_order_and_the_controller_gets_the_others() -> None:
    assert plan(range(4), None, cores=[3, 1]) == Plan(workers=(3, 1), control=(0, 2))
    assert plan(range(4), None, cores=[3, 1], count=1) == Plan(workers=(3,), control=(0, 1, 2))


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="no core"):
        plan((), None)


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_tightest_quota_on_the_way_up_counts_in_version_2(tmp_path: Path) -> None:
    root = _tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/kube/pod/box\n",
            "sys/fs/cgroup/kube/pod/box/cpu.max": "max 100000\n",
            "sys/fs/cgroup/kube/pod/cpu.max": "250000 100000\n",
            "sys/fs/cgroup/kube/cpu.max": "800000 100000\n",
        },
    )
    assert read_quota(root) == 2.5


def test_a_quota_is_found_at_the_mount_when_the_path_is_of_another_namespace(tmp_path: Path) -> None:
    root = _tree(
        tmp_path, {"proc/self/cgroup": "0::/../../outside\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}
    )
    assert read_quota(root) == 1.5


def test_a_quota_of_version_1_is_read(tmp_path: Path) -> None:
    root = _tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/box\n3:memory:/box\n",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
        },
    )
    assert read_quota(root) == 3.0


@pytest.mark.parametrize("files", [{}, {"proc/self/cgroup": "nonsense"}, {"proc/self/cgroup": "0::/\n"}])
def test_what_cannot_be_read_grants_everything(tmp_path: Path, files: dict[str, str]) -> None:
    assert read_quota(_tree(tmp_path, files)) is None


def test_no_quota_in_version_1_is_minus_one(tmp_path: Path) -> None:
    root = _tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert read_quota(root) is None
