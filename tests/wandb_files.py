"""Reads back what an offline W&B run wrote: a log of protobuf records in LevelDB's log format."""

import json
import struct
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK, _HEADER, _FILE_HEADER = 32_768, 7, 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def records(path: Path):
    data, position, parts = path.read_bytes(), _FILE_HEADER, b""
    while position + _HEADER <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        chunk = data[position + _HEADER : position + _HEADER + length]
        position += _HEADER + length
        parts = chunk if kind in (_FULL, _FIRST) else parts + chunk
        if kind in (_FULL, _LAST):
            record = Record()
            record.ParseFromString(parts)
            yield record


def read_run(folder: Path) -> dict:
    """{"config", "history" (list of rows), "summary", "tables"} of the one offline run under `folder`."""
    [path] = folder.glob("wandb/offline-run-*/run-*.wandb")
    config, summary, history = {}, {}, []
    for record in records(path):
        if record.HasField("run"):
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif record.HasField("history"):
            history.append({"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item})
        elif record.HasField("summary"):
            summary |= {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.summary.update}
    tables = {}
    for file in path.parent.rglob("*.table.json"):
        tables[file.name] = json.loads(file.read_text("utf-8"))
    return {"config": config, "history": history, "summary": summary, "tables": tables}
