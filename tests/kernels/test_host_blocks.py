"""Host blocks on their way to a GPU: who waits for whom, on streams that keep a record; and on a real one."""

from contextlib import contextmanager

import pytest
import torch

from mnmt_scale.kernels import host_blocks
from mnmt_scale.kernels.host_blocks import AHEAD, HostBlocks
from mnmt_scale.kernels.ops.fisher_similarity import fisher_similarity


class Streams:
    """Two streams whose work is done only when somebody waits for it: ``side`` for the copies, ``main`` for the reader.

    A copy happens as late as it may (at the first wait for its event or a later one), work of the reader as late as it may
    too. So values are right only if each waits for what it needs.
    """

    def __init__(self, monkeypatch):
        self.copies, self.inside, self.seen, self.copied = [], None, [], []
        real_copy = torch.Tensor.copy_

        def copy_(target, source, non_blocking=False):
            if self.inside is None:
                return real_copy(target, source)
            assert non_blocking
            self.copies.append((target, source))
            self.copied.append(target.data_ptr())
            return target

        monkeypatch.setattr(torch.Tensor, "copy_", copy_)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
        monkeypatch.setattr(host_blocks, "_empty", lambda shape, device: torch.full(tuple(shape), torch.nan))
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Main(self))
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        self.real_copy = real_copy

    @contextmanager
    def on(self, stream):
        self.inside = stream
        yield
        self.inside = None

    def wait_stream(self, main):
        pass

    def record_event(self):
        return len(self.copies)  # copies that are done when this event is

    def wait_event(self, event):
        """The copies go on only after the reader read this far."""
        event()

    def run_until(self, event):
        for target, source in self.copies[:event]:
            if target is not None:
                self.real_copy(target, source)
        self.copies[:event] = [(None, None)] * event


class Main:
    def __init__(self, side):
        self.side = side

    def wait_event(self, event):
        self.side.run_until(event)

    def record_event(self):
        """The reader's work on what it has seen is done when somebody waits for this."""
        late = list(self.side.seen)

        def done():
            for look in late:
                look()
            self.side.seen = [look for look in self.side.seen if look not in late]

        return done


def read(streams, blocks):
    """What a reader finds in the blocks of one reading, each looked at as late as an event allows."""
    found = []
    for place, block in enumerate(blocks()):
        found.append(None)
        streams.seen.append(lambda block=block, place=place: found.__setitem__(place, block.clone()))
    for look in streams.seen:
        look()
    streams.seen = []
    return found


CUDA = torch.device("cuda")
SIZES = [7, 3, 0, 5, 7, 1, 6, 2]


@pytest.mark.parametrize("kept", [0, 1, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 8])
def test_every_reading_sees_every_block(monkeypatch, kept, count):
    streams = Streams(monkeypatch)
    host = [torch.rand(2, n) for n in SIZES[:count]]
    blocks = HostBlocks(host, CUDA, keep_bytes=sum(b.nbytes for b in host[:kept]))
    for reading in range(3):
        found = read(streams, blocks)
        assert len(found) == count
        assert all(torch.equal(a, b) for a, b in zip(found, host, strict=True)), reading
    assert blocks.kept >= min(kept, count)
    sent = count + 2 * (count - blocks.kept)  # what is kept travels once
    assert len(streams.copied) == sent


def test_blocks_that_pass_share_a_ring(monkeypatch):
    streams = Streams(monkeypatch)
    blocks = HostBlocks([torch.rand(1, 4) for _ in range(20)], CUDA, keep_bytes=0)
    read(streams, blocks)
    assert len(set(streams.copied)) == AHEAD + 1
    assert blocks.kept == 0


def test_the_next_blocks_travel_while_one_is_read(monkeypatch):
    streams = Streams(monkeypatch)
    reading = iter(HostBlocks([torch.rand(1, 4) for _ in range(9)], CUDA, keep_bytes=0)())
    for number in range(1, 9 - AHEAD):
        next(reading)
        assert len(streams.copied) == number + AHEAD


def test_a_reader_that_gives_up_leaves_the_rest_right(monkeypatch):
    streams = Streams(monkeypatch)
    host = [torch.rand(1, 4) for _ in range(6)]
    blocks = HostBlocks(host, CUDA, keep_bytes=32)
    for number in (1, 2, 4):
        reading = blocks()
        for wanted in host[:number]:
            assert torch.equal(next(reading), wanted)
        reading.close()
    assert all(torch.equal(a, b) for a, b in zip(read(streams, blocks), host, strict=True))


def test_room_is_half_of_what_is_free(monkeypatch):
    streams = Streams(monkeypatch)
    monkeypatch.setattr(host_blocks, "_free_bytes", lambda device: 16 * 7)
    blocks = HostBlocks([torch.rand(1, 4) for _ in range(6)], CUDA)
    read(streams, blocks)
    assert blocks.kept == 3


def test_on_cpu_they_are_the_blocks_themselves():
    host = [torch.rand(3, 5), torch.rand(3, 0), torch.rand(3, 900)]
    assert all(a is b for a, b in zip(HostBlocks(host, torch.device("cpu"))(), host, strict=True))
    found, expected = fisher_similarity(HostBlocks(host, torch.device("cpu"))), fisher_similarity(host)
    assert torch.equal(found.overlap, expected.overlap)
    torch.testing.assert_close(found.kl, expected.kl)


@pytest.mark.gpu
@pytest.mark.parametrize("keep_bytes", [0, 100_000_000, None])
def test_streamed_similarity_on_a_gpu(keep_bytes):
    generator = torch.Generator().manual_seed(0)
    host = [(torch.randn(6, n, generator=generator) ** 2).pin_memory() for n in [1 << 21, 1, 1 << 20, 0, 3 << 20, 77]]
    expected = fisher_similarity([block.cuda() for block in host])
    blocks = HostBlocks(host, CUDA, keep_bytes=keep_bytes)
    for _ in range(2):
        found = fisher_similarity(blocks)
        for name in ("thresholds", "active", "overlap", "mse", "kl"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert (blocks.kept == len(host)) == (keep_bytes is None)
