"""moto's server with two of its faults mended, run as `python -m ingestor.local.moto_server -H HOST -p PORT`.

`Shard.put_record` is not safe for concurrency, as its comment says, while the server has a thread a request: of two
puts at once, one record takes the sequence number of the other and replaces it. And it makes a list of everything in
the shard to find the last one, so that every put is slower than the one before (moto 5.2.5, read 2026-11-26).
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moto.kinesis.models import Shard


def mend(shards: type[Shard]) -> None:
    """Have records put in turn, each behind the last one."""
    put_record, turn = shards.put_record, Lock()

    def put_in_turn(self: Shard, partition_key: str, data: str, explicit_hash_key: str) -> str:
        with turn:
            return put_record(self, partition_key, data, explicit_hash_key)

    def get_max_sequence_number(self: Shard) -> int:
        return next(reversed(self.records), 0)

    shards.put_record = put_in_turn  # type: ignore[method-assign]  # there is no other way in
    shards.get_max_sequence_number = get_max_sequence_number  # type: ignore[method-assign]


def main() -> None:
    """Serve until killed; needs moto, which only the extra `local` has."""
    from moto import server  # noqa: PLC0415 - as it says
    from moto.kinesis import models  # noqa: PLC0415 - likewise

    mend(models.Shard)
    server.main()


if __name__ == "__main__":
    main()
