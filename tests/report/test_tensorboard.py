"""Event files read back by Protocol Buffers' own library, from a schema of TensorBoard's that is written down here."""

import struct

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from locallearn.report.tensorboard import NAME, crc32c, masked, write_events

DOUBLE, FLOAT, INT64, STRING, MESSAGE = 1, 2, 3, 9, 11
SCHEMA = {
    "Event": [("wall_time", 1, DOUBLE, ""), ("step", 2, INT64, ""), ("file_version", 3, STRING, ""), ("summary", 5, MESSAGE, ".Summary")],
    "Summary": [("value", 1, MESSAGE, ".Value")],
    "Value": [("tag", 1, STRING, ""), ("simple_value", 2, FLOAT, "")],
}


@pytest.fixture(scope="module")
def event_class():
    file = descriptor_pb2.FileDescriptorProto(name="event.proto", syntax="proto3")
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for field, number, kind, of in fields:
            message.field.add(name=field, number=number, type=kind, type_name=of or None, label=3 if name == "Summary" else 1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Event"))


def test_crc32c_has_the_published_values():
    """RFC 3720, appendix B.4, and the check value of the catalogues."""
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes([0xFF] * 32)) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"123456789") == 0xE3069283


def records(data):
    while data:
        (length, check), payload = struct.unpack("<QI", data[:12]), data[12:]
        assert check == masked(data[:8])
        assert struct.unpack("<I", payload[length : length + 4]) == (masked(payload[:length]),)
        yield payload[:length]
        data = payload[length + 4 :]


def test_events_read_back(material, tmp_path, event_class):
    written = write_events(material, tmp_path)
    assert {path.name for path in written} == {NAME}
    assert len(written) == len(material.courses) == 15
    data = (tmp_path / "backprop-exact-00000000" / "seed-1" / NAME).read_bytes()
    events = [event_class.FromString(record) for record in records(data)]
    assert events[0].file_version == "brain.Event:2"
    told = [(event.step, {value.tag: value.simple_value for value in event.summary.value}) for event in events[1:]]
    by_step = [(step, tags) for step, tags in told if "cost/bytes" in tags]
    assert [step for step, _ in by_step] == [50, 100]
    assert by_step[1][1]["validation_accuracy"] == pytest.approx(0.80)
    assert by_step[1][1]["test_accuracy"] == pytest.approx(0.91)
    assert by_step[1][1]["cost/bytes"] == 4_000_000
    assert by_step[1][1]["angle/block_0"] == 31.0
    assert [step for step, tags in told if "against_bytes/validation_accuracy" in tags] == [2_000_000, 4_000_000]
    assert events[1].wall_time == pytest.approx(1767323045 + 5)  # 2026-01-02T03:04:05Z, and the seconds of the run
