"""The demo's children: watched, and ended whatever happens."""

from pathlib import Path

import pytest

from server_app.demo_children import Child, ChildDied, Children

FOREVER = ["http.server", "0", "--bind", "127.0.0.1"]


async def test_a_child_that_ends_by_itself_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    async with Children(tmp_path) as children:
        child = await children.start("broken", ["no_such_module_of_ours"])
        await child.process.wait()
        with pytest.raises(ChildDied, match=r"broken ended with 1.*\n.*No module named no_such_module_of_ours"):
            children.check()


async def test_leaving_the_block_ends_every_child_even_on_an_error(tmp_path: Path) -> None:
    started: list[Child] = []
    with pytest.raises(ZeroDivisionError):
        async with Children(tmp_path) as children:
            started += [await children.start(name, FOREVER) for name in ("one", "two")]
            children.check()
            raise ZeroDivisionError
    assert all(not child.is_running for child in started)


async def test_a_child_killed_on_purpose_is_not_reported(tmp_path: Path) -> None:
    async with Children(tmp_path) as children:
        child = await children.start("victim", FOREVER)
        await child.kill()
        await child.kill()
        children.check()
        assert child.process.returncode == -9 and not child.is_running
