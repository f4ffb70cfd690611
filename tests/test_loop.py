"""Run with: pytest tests/test_loop.py"""

import os
import signal
from pathlib import Path

import pytest
import torch

from models import loop
from models.errors import InputError, Stopped
from models.loop import Loop, Mean, Order, share


def training(path: Path | None, updates: int = 20, key: dict | None = None, lr: float = 0.1, **options):
    """A noisy descent towards 3: its parameter, and the loop that keeps it."""
    weight = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr)
    parts = {"weights": {"weight": weight}, "optimizer": optimizer}
    return weight, optimizer, Loop(path, parts, updates=updates, key=key, **options)


def descend(weight, optimizer, updates: Loop, act=lambda update: None) -> None:
    for update in updates:
        noise = torch.randn(2, generator=loop.generator(0, update))
        loss = (weight - 3 + noise).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        updates.note(loss.detach())
        act(update)


@pytest.fixture
def straight() -> tuple[torch.Tensor, torch.Tensor]:
    """Where an undisturbed training ends, and its mean loss."""
    weight, optimizer, updates = training(None)
    descend(weight, optimizer, updates)
    return weight.detach(), updates.averaged()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_between_two_updates_and_nothing_is_lost(straight, tmp_path: Path, number: int) -> None:
    weight, optimizer, updates = training(tmp_path / "last.pt")
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stop:
        descend(weight, optimizer, updates, lambda update: os.kill(os.getpid(), number) if update == 6 else None)
    assert stop.value.signal == number and signal.getsignal(number) is before
    weight, optimizer, updates = training(tmp_path / "last.pt")
    assert updates.update == 7
    descend(weight, optimizer, updates)
    assert torch.equal(weight.detach(), straight[0])
    assert torch.allclose(updates.averaged(), straight[1])


def test_sittings_end_as_one_run_does_and_a_finished_one_does_nothing(straight, tmp_path: Path) -> None:
    for stop_after in (3, 9, None, None):
        weight, optimizer, updates = training(tmp_path / "last.pt", stop_after=stop_after)
        descend(weight, optimizer, updates)
    assert torch.equal(weight.detach(), straight[0]) and updates.update == 20


def test_a_state_that_is_not_finite_is_never_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", -1.0)
    weight, optimizer, updates = training(tmp_path / "last.pt")

    def break_at(update: int) -> None:
        if update == 4:
            weight.data[0] = torch.nan

    with pytest.raises(InputError, match=r"not finite after update 5; the last finite state is in .*last.pt"):
        descend(weight, optimizer, updates, break_at)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["update"] == 4 and loop.is_finite(state["parts"])


def test_a_mean_that_is_not_finite_is_an_error() -> None:
    _, _, updates = training(None)
    updates.note(torch.tensor(torch.inf))
    with pytest.raises(InputError, match="the loss is not finite at update 1; nothing was saved"):
        updates.averaged()


def test_another_key_is_refused_by_name_or_starts_anew(tmp_path: Path, capsys) -> None:
    path = tmp_path / "last.pt"
    training(path, key={"seed": 0, "lr": 0.1})[2].save()
    with pytest.raises(InputError, match=r"was started with seed=0 \(now 1\)"):
        training(path, key={"seed": 1, "lr": 0.1})
    training(path, key={"seed": 0, "lr": 0.01}, may_fall=("lr",))
    with pytest.raises(InputError, match=r"lr=0.1 \(now 0.2\)"):
        training(path, key={"seed": 0, "lr": 0.2}, may_fall=("lr",))
    assert training(path, key={"seed": 1, "lr": 0.1}, restart=True)[2].update == 0
    assert "starting anew" in capsys.readouterr().err


def test_a_damaged_state_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    training(path)[2].save()
    whole = path.read_bytes()
    for content in (b"", b"broken", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"last\.pt"):
            training(path)


@pytest.mark.parametrize(
    "change",
    [
        dict(key=3),
        dict(update=-1),
        dict(update=21),
        dict(update="4"),
        dict(update=True),
        dict(mean=(1, 2)),
        dict(parts={}),
        dict(parts=[1]),
        dict(parts={"weights": {}, "optimizer": {}}),
        dict(parts={"weight": {"weight": torch.zeros(3, 3)}, "optimizer": {}}),
        dict(parts={"weight": {"weight": "x"}, "optimizer": {}}),
    ],
    ids=str,
)
def test_a_state_of_another_make_is_one_sentence(tmp_path: Path, change: dict) -> None:
    path = tmp_path / "last.pt"
    training(path)[2].save()
    torch.save(torch.load(path, weights_only=True) | change, path)
    with pytest.raises(InputError, match=r"last\.pt .*damaged.*; remove it to start over"):
        training(path)
    torch.save([1], path)
    with pytest.raises(InputError, match=r"last\.pt .*damaged; remove it to start over"):
        training(path)


def test_what_an_optimiser_kept_is_checked_and_its_rates_are_those_of_now(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    weight, optimizer, updates = training(path, stop_after=3)
    descend(weight, optimizer, updates)
    whole = torch.load(path, weights_only=True)
    moments = whole["parts"]["optimizer"]["state"][0]
    damaged = [
        ({}, "it is empty"),
        ({0: {"step": torch.tensor(3.0)}}, "it has no moments of a parameter of shape .2."),
        ({0: moments | {"exp_avg": torch.zeros(3)}}, "its exp_avg is of another kind or size"),
        ({0: moments | {"exp_avg": torch.zeros(1)}}, "its exp_avg is of another kind or size"),
        ({0: moments | {"exp_avg": "x"}}, "its exp_avg is of another kind or size"),
        ({0: moments | {"exp_avg": torch.full((2,), torch.nan)}}, "it holds values that are not finite"),
    ]
    for state, said in damaged:
        groups = whole["parts"]["optimizer"]["param_groups"]
        parts = whole["parts"] | {"optimizer": {"state": state, "param_groups": groups}}
        torch.save(whole | {"parts": parts}, path)
        with pytest.raises(InputError, match=rf"last.pt is damaged: optimizer \({said}.*; remove it to start over"):
            training(path)
    whole["parts"]["optimizer"]["param_groups"][0] |= {"lr": "x", "betas": None}
    torch.save(whole, path)
    _, optimizer, updates = training(path, lr=0.05)
    assert updates.update == 3 and optimizer.param_groups[0]["lr"] == 0.05
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_shares_of_updates_are_made_when_asked_for_and_deal_out_every_batch() -> None:
    order = Order(10**6, 1000, 7, repeats=2)
    endless = order.shares(3, 10**12)
    epoch, images, repeats = order.batch(3)
    every = list(zip([epoch] * 1000, images.tolist(), repeats.tolist(), strict=True))
    assert next(endless) == every
    halves = [next(order.shares(3, 10**12, rank, 2)) for rank in (0, 1)]
    assert halves == [share(every, rank, 2) for rank in (0, 1)]


def test_an_order_gives_every_image_once_an_epoch_and_another_order_the_next() -> None:
    order = Order(12, 4, 7)
    epochs = [[int(i) for update in range(e * 3, e * 3 + 3) for i in order.batch(update)[1]] for e in range(2)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs) and epochs[0] != epochs[1]
    assert [order.batch(update)[0] for update in range(6)] == [0, 0, 0, 1, 1, 1]
    assert torch.equal(Order(12, 4, 7).batch(4)[1], order.batch(4)[1])
    assert not torch.equal(Order(12, 4, 8).of_epoch(0), order.of_epoch(0))


def test_repeats_stand_in_a_row_and_are_told_apart() -> None:
    _, images, repeats = Order(12, 12, 0, repeats=3).batch(0)
    assert images.unflatten(0, (4, 3)).unique(dim=1).shape == (4, 1) and len(images.unique()) == 4
    assert repeats.tolist() == [0, 1, 2] * 4


@pytest.mark.parametrize(("size", "world"), [(8, 1), (8, 2), (12, 3), (7, 1)])
def test_shares_are_a_batch_dealt_out_and_mirrored_images_stay_together(size: int, world: int) -> None:
    batch = list(range(size))
    shares = [share(batch, rank, world) for rank in range(world)]
    assert sorted(i for part in shares for i in part) == batch
    assert len({len(part) for part in shares}) == 1
    for part in shares:
        assert [size - 1 - i for i in part] == part[::-1]


def test_unequal_shares_are_refused_with_a_size_that_fits() -> None:
    loop.refuse_unequal(64, 2)
    loop.refuse_unequal(7, 1)
    with pytest.raises(InputError, match="batch of 64 cannot be shared by 3 .* --batch-size 66"):
        loop.refuse_unequal(64, 3)


def test_a_mean_is_that_of_what_it_was_given() -> None:
    mean = Mean()
    for value in (1.0, 2.0, 6.0):
        mean.add(torch.tensor([value, 2 * value]))
    assert mean.taken().tolist() == [3.0, 6.0]
    assert mean.taken().isnan()
