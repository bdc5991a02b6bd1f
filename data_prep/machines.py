"""Check that each machine of a Ray cluster can build a store: that it sees the sources and the folder of the store.

A build on a cluster would otherwise find out in the middle that a machine has no such file, another one of that name,
other credentials, or lacks the package for a format. Machines that join later are checked by their first task.
"""

from __future__ import annotations

import functools
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from data_prep.shard_records import LEASE
from data_prep.source_identity import SourceIdentity, glance, identify
from data_prep.sources import require_library
from mcrnn.data.manifest import map_ahead
from mcrnn.errors import UserError, first_line
from mcrnn.runners.ray_cluster import ask_machines, connected
from mcrnn.storage.location import CHECK_PREFIX, Location, check
from mcrnn.storage.s3 import S3_SCHEME

SHOWN_MACHINES = 3
"""Machines with the same problem that a message names."""

MISSING, OTHER, ELSEWHERE = "no {}", "other content in {} than here", "{} is not the same folder as here"
"""What a machine may lack, beside what errors say; `{}` stands for the source or folder."""

Problem = tuple[str, str]
"""What is wrong, with `{}` in place of the source or folder, and that source or folder."""


@dataclass(frozen=True)
class Needs:
    """What a machine needs for a build.

    Attributes:
        location: folder of the store.
        sources: each source as it was when the build was planned, with its `glance` then.
    """

    location: Location
    sources: tuple[tuple[SourceIdentity, str], ...]


@dataclass(frozen=True)
class CheckedMachines:
    """The machines of a cluster that were found able to build.

    Attributes:
        needs: what a machine needs.
        nodes: their identifiers in Ray.
    """

    needs: Needs
    nodes: frozenset[str]

    def check_this_one(self) -> None:
        """Check the machine of this process, once, if it has joined the cluster since.

        Raises:
            UserError: it cannot build.
        """
        import ray

        context = ray.get_runtime_context()
        if context.get_node_id() in self.nodes:
            return
        if problems := _checked_here(self.needs):
            address = ray.util.get_node_ip_address()
            raise _refusal(self.needs, {problem: [address] for problem in problems})


def check_machines(location: Location, sources: Sequence[SourceIdentity]) -> CheckedMachines | None:
    """Check, on all machines of the cluster of RAY_ADDRESS at the same time, that each of them can build a store.

    Of a large source on a disk, time stamp, size and a small part of the content are compared; tasks compare more of it
    when they open it. Whatever is written is deleted again.

    Args:
        location: folder of the store.
        sources: the sources, as they were when the build was planned.

    Returns:
        The machines; None without RAY_ADDRESS, where there is no other machine.

    Raises:
        UserError: some machines cannot; the message names all of them, what each lacks, and what to do.
    """
    if not os.environ.get("RAY_ADDRESS"):
        return None
    needs = Needs(location, tuple((source, glance(source)) for source in sources))
    witness = f"{CHECK_PREFIX}{uuid.uuid4().hex}"
    location.write(witness, b"mcrnn")
    try:
        with connected():
            answers = ask_machines(find_problems, needs, witness)
    finally:
        location.delete(witness)
    machines: dict[Problem, list[str]] = {}
    for answer in answers:
        for problem in [(answer.problem, location.url)] if answer.problem else answer.result:
            machines.setdefault(problem, []).append(answer.address)
    if machines:
        raise _refusal(needs, machines)
    return CheckedMachines(needs, frozenset(answer.node for answer in answers))


def find_problems(needs: Needs, witness: str) -> list[Problem]:
    """Find out what this machine lacks for a build.

    Args:
        needs: what it needs.
        witness: key of an object that the process which leads the build has written into the folder of the store.
    """
    known = {source.url: (source, checksum) for source, checksum in needs.sources}
    found = [
        _problem_of_folder(needs.location, witness),
        *map_ahead(lambda url: _problem_of_source(*known[url]), known),
    ]
    return [problem for problem in found if problem is not None]


def _problem_of_folder(location: Location, witness: str) -> Problem | None:
    try:
        location.read(witness)
        check(location)
    except FileNotFoundError:
        return ELSEWHERE, location.url
    except (UserError, OSError) as error:
        return _reason(error, location.url)
    return None


def _problem_of_source(source: SourceIdentity, known: str) -> Problem | None:
    """Return what is wrong with a source on this machine, quickly; None where it is the one whose `glance` is known."""
    is_remote = "://" in source.url
    if not is_remote and not os.path.exists(source.url):
        return MISSING, source.url
    try:
        require_library(source.url)
        if is_remote:
            is_same = identify(source.url, source.arrays).checksum == known
        else:
            is_same = source.has_same_stamp() or glance(source) == known
    except (UserError, OSError) as error:
        return _reason(error, source.url)
    return None if is_same else (OTHER, source.url)


def _reason(error: Exception, url: str) -> Problem:
    return first_line(error).replace(f"'{url}'", "{}", 1), url


@functools.lru_cache(maxsize=1)
def _checked_here(needs: Needs) -> list[Problem]:
    return find_problems(needs, LEASE)


def _refusal(needs: Needs, machines: dict[Problem, list[str]]) -> UserError:
    """Return the error that names each problem, and the addresses of the machines that have it."""
    urls: dict[Problem, list[str]] = {}
    for (problem, url), addresses in machines.items():
        urls.setdefault((problem, _listed(addresses)), []).append(url)
    clauses = [f"on {where}: {problem.replace('{}', _counted(names), 1)}" for (problem, where), names in urls.items()]
    kinds = {problem for problem, _ in machines}
    if kinds & {MISSING, OTHER}:
        clauses.append("put sources into a folder that all machines share, under the same path, or on s3://")
    if ELSEWHERE in kinds:
        clauses.append("let MCRNN_STORAGE be a folder that all machines share, or s3://BUCKET/PREFIX")
    if any(url.startswith(S3_SCHEME) and problem != OTHER for problem, url in machines):
        clauses.append("a machine has the AWS variables with which Ray was started on it")
    return UserError(f"the cluster cannot build '{needs.location.url}': {'; '.join(clauses)}")


def _listed(addresses: Sequence[str]) -> str:
    names = list(dict.fromkeys(addresses))
    more = f" and {len(names) - SHOWN_MACHINES} more" if len(names) > SHOWN_MACHINES else ""
    return f"{', '.join(names[:SHOWN_MACHINES])}{more}"


def _counted(urls: Sequence[str]) -> str:
    return f"'{urls[0]}'" + (f" and {len(urls) - 1} more" if len(urls) > 1 else "")
