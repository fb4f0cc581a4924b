"""Following a run while its aggregator dies and comes back."""

from schemas.plan import plan_from_toml
from schemas.status import RunPhase, RunStatus
from server_app.client import Client, Unreachable

PLAN = plan_from_toml('task = "fedge.tasks.wisdm:task"\nrounds = 2\n[cohort]\ndevices = 3\n')


def status(phase: RunPhase) -> RunStatus:
    return RunStatus(
        run="r-1", task=PLAN.task, phase=phase, rounds_closed=0, rounds_planned=2, created_at=0.0, plan=PLAN
    )


class Script(Client):
    """Answers as told; None: nobody answers."""

    def __init__(self, *answers: RunPhase | None) -> None:
        super().__init__("http://hub:1")
        self.answers = list(answers)

    async def run(self, run: str) -> RunStatus:
        phase = self.answers.pop(0) if self.answers else None
        if phase is None:
            raise Unreachable("nobody")
        return status(phase)


async def watched(client: Client, patience_seconds: float) -> tuple[list[RunPhase], int, bool]:
    """Return the phases seen, how often the loss was told, and whether it gave up."""
    seen: list[RunPhase] = []
    lost: list[Unreachable] = []
    try:
        async for now in client.watch("r-1", 0.0, patience_seconds, lost.append):
            seen.append(now.phase)
    except Unreachable:
        return seen, len(lost), True
    return seen, len(lost), False


async def test_an_aggregator_that_comes_back_is_followed_to_the_end_and_its_loss_is_told_once() -> None:
    client = Script(RunPhase.RUNNING, None, None, None, RunPhase.FINISHED)
    assert await watched(client, 60.0) == ([RunPhase.RUNNING, RunPhase.FINISHED], 1, False)


async def test_one_that_was_never_there_is_given_up_at_once_and_one_that_was_after_a_while() -> None:
    assert await watched(Script(None, RunPhase.FINISHED), 60.0) == ([], 0, True)
    assert (await watched(Script(RunPhase.RUNNING), 0.01))[::2] == ([RunPhase.RUNNING], True)
