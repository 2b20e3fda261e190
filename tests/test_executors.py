"""Units run in order on any executor; workers are single-threaded, start without the script and are replaced."""

import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor
from pathlib import Path

import pytest
import threadpoolctl
import torch

from openmm_sgm.executors import SerialExecutor, make_executor, one_thread, run_units
from openmm_sgm.units import InputError
from openmm_sgm.workers import Limited


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with make_executor(1) as executor:
        yield executor


def square(number: int) -> int:
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number * number


def number_of_threads(_: int) -> tuple[int, list[str | None]]:
    import torch  # loaded in the worker, after its environment was set

    return torch.get_num_threads(), [os.environ.get(n) for n in ("OMP_NUM_THREADS", "OPENMM_CPU_THREADS")]


def die(number: int) -> int:
    os._exit(number)


def test_workers_below_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="workers must be 0"):
        make_executor(-1)


def test_results_come_in_order_from_any_executor(pool: Executor) -> None:
    units = list(range(7))
    with ThreadPoolExecutor(3) as threads:
        for executor in (SerialExecutor(), threads, pool):
            assert run_units(executor, square, units) == [n * n for n in units]


@pytest.mark.parametrize("serial", [True, False])
def test_an_error_is_raised_or_handed_to_the_caller(pool: Executor, serial: bool) -> None:
    executor = SerialExecutor() if serial else pool
    with pytest.raises(ValueError, match="-2 is negative"):
        run_units(executor, square, [1, -2, 3])
    assert run_units(executor, square, [1, -2, 3], lambda unit, error: unit) == [1, -2, 9]


def test_workers_have_one_thread_and_the_parent_keeps_its_own(pool: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("OPENMM_CPU_THREADS", raising=False)
    main = sys.modules["__main__"]
    before = main.__spec__, getattr(main, "__file__", None)
    with make_executor(1) as executor:
        assert run_units(executor, number_of_threads, [0]) == [(1, ["1", "1"])]
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert "OPENMM_CPU_THREADS" not in os.environ
    assert (main.__spec__, getattr(main, "__file__", None)) == before


def test_a_limited_function_stands_for_the_function(pool: Executor) -> None:
    limited = Limited(square, 60.0)
    assert {square: "known"}.get(limited) == "known"
    assert (limited.__module__, limited.__qualname__) == (square.__module__, "square")
    assert limited != die
    assert pool.submit(limited, 3).result() == 9


def test_arguments_and_results_that_cannot_be_sent_fail_their_call_only(pool: Executor) -> None:
    for future in (pool.submit(square, lambda: 1), pool.submit(threading.Lock)):  # type: ignore[arg-type]
        with pytest.raises((TypeError, AttributeError, RuntimeError, pickle.PicklingError), match="pickle"):
            future.result()
    assert run_units(pool, square, [3]) == [9]


def test_a_pool_that_is_shut_down_takes_nothing_more() -> None:
    executor = make_executor(1)
    futures = [executor.submit(time.sleep, 0.5) for _ in range(3)]
    while not futures[0].running():
        time.sleep(0.01)
    executor.shutdown(cancel_futures=True)
    assert [future.cancelled() for future in futures] == [False, True, True]
    assert futures[0].result() is None
    with pytest.raises(RuntimeError, match="shut down"):
        executor.submit(square, 1)


def test_a_dead_worker_is_replaced() -> None:
    with make_executor(1) as executor:
        with pytest.raises(BrokenExecutor):
            run_units(executor, die, [3])
        assert run_units(executor, square, [3]) == [9]


def test_an_executor_that_refuses_work_fails_the_unit_only() -> None:
    class Refuses(SerialExecutor):
        def submit(self, fn, /, *args, **kwargs):  # type: ignore[no-untyped-def]
            if args == (2,):
                raise BrokenExecutor("no workers")
            return super().submit(fn, *args, **kwargs)

    assert run_units(Refuses(), square, [1, 2, 3], lambda unit, error: -1) == [1, -1, 9]


def run_script(tmp_path: Path, text: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(text))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, env=environment, check=False
    )


def test_a_script_without_a_main_guard_runs_once(tmp_path: Path) -> None:
    done = run_script(
        tmp_path,
        """
        import math
        from openmm_sgm.executors import make_executor, run_units
        print("script runs")
        with make_executor(2) as executor:
            print(run_units(executor, math.factorial, [3, 4, 5]))
        """,
    )
    assert done.stdout.splitlines() == ["script runs", "[6, 24, 120]"], done.stderr


def test_a_function_of_the_script_itself_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(square, "__module__", "__main__")
    assert run_units(SerialExecutor(), square, [2]) == [4]
    with make_executor(1) as executor, pytest.raises(InputError, match="square is defined in the script itself"):
        run_units(executor, square, [2])


def test_workers_end_when_the_parent_is_killed(tmp_path: Path) -> None:
    done = run_script(
        tmp_path,
        """
        import os
        from openmm_sgm.executors import make_executor
        executor = make_executor(1)
        print(executor.submit(os.getpid).result(), flush=True)
        os.kill(os.getpid(), 9)
        """,
    )
    worker = int(done.stdout)
    for _ in range(100):
        if not is_running(worker):
            return
        time.sleep(0.05)
    raise AssertionError(f"worker {worker} outlived its parent by 5 s")


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_one_thread_is_for_a_while() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            inside = torch.get_num_threads(), {library["num_threads"] for library in threadpoolctl.threadpool_info()}
        assert inside == (1, {1})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
