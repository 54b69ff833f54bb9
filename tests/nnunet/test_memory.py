import os

import pytest

from rehrseg_nnunet.nnunet import memory


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="the system does not say")
def test_memory_of_machine_and_container(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CONTAINER_LIMIT", tmp_path / "none")
    machine = memory.memory_bytes()
    assert 1 << 28 < machine < 1 << 50
    monkeypatch.setattr(memory, "CONTAINER_LIMIT", tmp_path / "memory.max")
    for content, expected in (("max", machine), (str(machine * 2), machine), ("1048576", 1 << 20)):
        (tmp_path / "memory.max").write_text(f"{content}\n")
        assert memory.memory_bytes() == expected


def test_where_the_system_does_not_say(monkeypatch):
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert memory.memory_bytes() is None
