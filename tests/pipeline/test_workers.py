"""Where a run computes, and with how many processes."""

import pytest

from trans4pass.errors import ConfigError
from trans4pass.pipeline.environment import choose_device, choose_workers


@pytest.mark.parametrize(
    ("cores", "processes", "expected"), [(1, 1, 1), (2, 1, 2), (64, 1, 4), (8, 4, 2), (16, 8, 2), (2, 4, 1)]
)
def test_as_many_data_workers_as_the_machine_has_cores_for(
    cores: int, processes: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert choose_workers(None) == expected
    assert choose_workers(7) == 7
    assert choose_workers(0) == 0


@pytest.mark.parametrize("number", [-1, 1.5, "auto", True])
def test_what_is_no_number_of_workers_is_refused(number: object) -> None:
    with pytest.raises(ConfigError, match=f"num_workers.*{number}"):
        choose_workers(number)


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_one_gpu_for_several_processes_is_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether there is a GPU or not; a single process may choose one."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for processes in ("1", "2"):
        monkeypatch.setenv("WORLD_SIZE", processes)
        monkeypatch.setenv("LOCAL_RANK", str(int(processes) - 1))
        if processes == "1":
            assert str(choose_device(device)) == device
        else:
            assert str(choose_device("cuda")) == "cuda:1"
            with pytest.raises(ConfigError, match=rf"device={device}.*2 processes.*device=cuda "):
                choose_device(device)
