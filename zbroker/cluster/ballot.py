"""A voter's ballot: the newest epoch that it knows, and whom it voted for in it.

Owns the file that keeps it. A vote that is forgotten can be given twice, which elects two leaders of one epoch: so the
file is flushed before anybody hears of the vote, and a file that is there and cannot be read stops the node.
"""

from __future__ import annotations

import msgspec

from zbroker.errors import DataFolderError, DiskFull
from zbroker.log import envelope
from zbroker.log.storage import Files, Request

MAGIC = b"ZBBA"
NAME = "ballot"


class Ballot(msgspec.Struct, frozen=True, array_like=True):
    """The newest epoch known, and the candidate voted for in it, None where there was none.

    A candidate is a node and its disk: two disks of one node are two voters, of which one may be voted for.
    """

    epoch: int = -1
    voted_for: str | None = None
    disk: str = ""


_decode = msgspec.msgpack.Decoder(Ballot).decode


class SaveBallot(Request):
    """Replaces the ballot, on disk once this is done."""

    ballot: Ballot

    def run(self, files: Files) -> Ballot:
        """The ballot that is on disk now.

        Raises:
            DiskFull: the old one is still there.
        """
        data = envelope.seal(MAGIC, msgspec.msgpack.encode(self.ballot))
        try:
            envelope.save(files, self.owner, NAME, data)
        except OSError as error:
            if error.errno in envelope.FULL:
                raise DiskFull("the disk is full, and a vote could not be kept") from error
            raise
        return self.ballot


class LoadBallot(Request):
    """Reads the ballot."""

    def run(self, files: Files) -> Ballot:
        """The ballot, an empty one where none was ever kept.

        Raises:
            DataFolderError: it is there and is damaged: this voter may have voted for it does not know whom.
        """
        path = f"{self.owner}/{NAME}"
        if files.size(path) < 0:
            return Ballot()
        body = envelope.load(files, path, MAGIC)
        try:
            return _decode(body or b"")
        except msgspec.MsgspecError:
            raise DataFolderError(
                f"{path} is damaged: this voter may have voted, and does not know for whom; replace the voter "
                "with an empty disk"
            ) from None
