"""A cluster's first formation, and what a disk keeps of it: the cluster's id, and who its first voters are.

Owns the file that keeps both, and the rule by which it is first written: all voters that the configuration names are
reachable, all of their disks are empty, and all name the same voters. The first of them by name, the founder, chooses
the id and says who is who; nobody votes before it has that on disk. A disk that comes empty to a cluster that exists
keeps the cluster's id and no voters: its log will tell it whether it votes.

======== ============================================= ======== ====================================================
state    on                                            next     effect
======== ============================================= ======== ====================================================
loading  the file is there                             formed
loading  there is none, and this node votes alone      saving   the cluster is founded
loading  there is none                                 waiting
waiting  this node founds, all voters are as they must saving   the cluster is founded
waiting  the founder's word, for this very disk        saving   what it says is kept
waiting  a peer that belongs to a cluster              saving   its id is kept, without voters
loading  a peer that belongs to a cluster              loading  the same, once it is known that there is no file
saving   the file is on disk                           formed   the founder tells those who do not know the voters yet
saving   the founder's word                            saving   kept next
formed   the founder's word, where no voters are kept  saving   what it says is kept
any      the file is damaged or cannot be written      failed   the node stops
======== ============================================= ======== ====================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from zbroker.errors import DataFolderError, StorageFailed, ZBrokerError
from zbroker.log import envelope, names
from zbroker.log.storage import Completion, Files, Request, Storage
from zbroker.protocol.peers import Form, Greeting

FOLDER = "metadata"
NAME = "cluster"
MAGIC = b"ZBCL"

State = Literal["loading", "waiting", "saving", "formed", "failed"]


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """Which cluster a disk belongs to; its first voters, disk ids by name, where the disk was there from the start."""

    cluster: str
    voters: dict[str, str]


_decode = msgspec.msgpack.Decoder(Identity).decode


class SaveIdentity(Request):
    """Keeps the identity, on disk once this is done."""

    identity: Identity

    def run(self, files: Files) -> Identity:
        """The identity that is on disk now; and with it the folder, in which the votes will be too."""
        files.make_folder(self.owner)
        files.flush_folder(names.parent(self.owner))
        data = envelope.seal(MAGIC, msgspec.msgpack.encode(self.identity))
        envelope.save(files, self.owner, NAME, data)
        return self.identity


class LoadIdentity(Request):
    """Reads the identity."""

    def run(self, files: Files) -> Identity | None:
        """The identity, None on a disk that belongs to no cluster yet.

        Raises:
            DataFolderError: it is there and is damaged.
        """
        path = f"{self.owner}/{NAME}"
        if files.size(path) < 0:
            return None
        try:
            return _decode(envelope.load(files, path, MAGIC) or b"")
        except msgspec.MsgspecError:
            raise DataFolderError(
                f"{path} is damaged: it says which cluster this disk belongs to; put it back from a copy, or start "
                "this node on an empty folder and replace it in the cluster"
            ) from None


class Formation:
    """One node's part. See the module for its states.

    Attributes:
        identity: what is on disk here, None before.
        error: why it failed.
        waiting_for: what the formation waits for, in words for people.
    """

    def __init__(
        self,
        node: str,
        disk_id: str,
        voters: Sequence[str],
        *,
        storage: Storage,
        send: Callable[[str, Form], None],
        fresh_id: Callable[[], str],
    ) -> None:
        """
        Args:
            voters: as the configuration names them.
            send: reaches a peer; may be lost.
        """
        self.state: State = "loading"
        self.identity: Identity | None = None
        self.error: ZBrokerError | None = None
        self.waiting_for: list[str] = []
        self._node = node
        self._disk_id = disk_id
        self._voters = sorted(voters)
        self._storage = storage
        self._send = send
        self._fresh_id = fresh_id
        self._met: dict[str, Greeting] = {}
        self._exists = ""
        """The id of a cluster that a peer belongs to, where one does."""
        self._next: Identity | None = None

    @property
    def is_empty(self) -> bool:
        """Whether this disk does not know who voted first: it belongs to no cluster, or came to one that existed."""
        return self.identity is None or not self.identity.voters

    def open(self) -> None:
        """Looks what the disk keeps."""
        self._storage.submit(LoadIdentity(owner=FOLDER, lane="metadata"))

    def on_event(self, completion: Completion) -> None:
        """The file is read, or written."""
        if completion.error is not None:
            self._fail(completion.error)
        elif isinstance(completion.request, LoadIdentity) and completion.result is None:
            self.state = "waiting"
            self._join_or_try()
        else:
            self.identity = completion.result
            self.state = "formed"
            following, self._next = self._next, None
            if following is not None:
                self._keep(following)
            else:
                self._spread()

    def on_greeting(self, sender: str, cluster: str, greeting: Greeting) -> None:
        """A peer said who it is; `cluster` is empty where it belongs to none."""
        self._met[sender] = greeting
        self._exists = cluster or self._exists
        if self.state == "waiting":
            self._join_or_try()
        elif self.state == "formed":
            self._spread()

    def on_form(self, sender: str, form: Form) -> None:
        """The founder speaks."""
        fits = (
            sender == self._voters[0]
            and sorted(form.voters) == self._voters
            and form.voters.get(self._node) == self._disk_id
        )
        if fits:
            self._keep(Identity(form.cluster, dict(form.voters)))

    def _keep(self, told: Identity) -> None:
        """What the founder said, where it adds to what is kept."""
        kept = self.identity
        if self.state == "saving":
            self._next = told
        elif kept is None or (not kept.voters and kept.cluster == told.cluster):
            self._save(told)

    def _join_or_try(self) -> None:
        """Where there is a cluster, none is founded."""
        if self._exists:
            self._save(Identity(self._exists, {}))
        else:
            self._try()

    def _try(self) -> None:
        """Founds the cluster if everything is as it must be; else says what is missing."""
        if self._node not in self._voters:
            self.waiting_for = ["a node that belongs to the cluster"]
            return
        self.waiting_for = [
            problem
            for voter in self._voters
            if voter != self._node and (problem := self._problem(voter))
        ]
        if self._voters[0] == self._node and not self.waiting_for:
            disks = {
                voter: self._met[voter].disk_id for voter in self._voters if voter in self._met
            }
            self._save(Identity(self._fresh_id(), {**disks, self._node: self._disk_id}))

    def _problem(self, voter: str) -> str:
        greeting = self._met.get(voter)
        if greeting is None:
            return f"{voter}, which has not been heard"
        if not greeting.empty:
            return f"{voter}, whose disk is not empty"
        if sorted(greeting.voters) != self._voters:
            return (
                f"{voter}, whose configuration names other voters ({', '.join(sorted(greeting.voters))}) than "
                f"this node's ({', '.join(self._voters)})"
            )
        return ""

    def _save(self, identity: Identity) -> None:
        self.state = "saving"
        self.waiting_for = []
        self._storage.submit(SaveIdentity(owner=FOLDER, lane="metadata", identity=identity))

    def _spread(self) -> None:
        """The founder tells those whose disks are empty; until they have it, again at each of their greetings."""
        kept = self.identity
        if kept is None or not kept.voters or min(kept.voters) != self._node:
            return
        for voter, greeting in sorted(self._met.items()):
            if greeting.empty and kept.voters.get(voter) == greeting.disk_id:
                self._send(voter, Form(cluster=kept.cluster, voters=dict(kept.voters)))
                del self._met[voter]

    def _fail(self, error: OSError | ZBrokerError) -> None:
        if not isinstance(error, ZBrokerError):
            error = StorageFailed(f"the cluster's id could not be kept: {error}")
        self.state = "failed"
        self.error = error
