"""The bill of materials: what the container holds beside Python, as CycloneDX JSON made from the lock.

The same lock gives the same bytes: no time, no random number, no address of an index and no path of a machine. What the
lock pins for other platforms is in it too, marked as not included.
"""

# The library's classes are made by a decorator that pyright does not see through; mypy does.
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false, reportArgumentType=false

from __future__ import annotations

import re
import sys
import tomllib
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from ingestor import __version__
from tests.supply.lock import LOCK, Locked, is_in_image, read_lock

PROJECT: Final = LOCK.parents[1] / "pyproject.toml"


def component_of(locked: Locked) -> Component:
    """Describe one pinned package, with the hash of every file that the lock accepts for it."""
    purl = PackageURL("pypi", name=locked.name, version=locked.version)
    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=digest) for digest in sorted(locked.digests)]
    where = ExternalReference(type=ExternalReferenceType.DISTRIBUTION, url=XsUri(str(purl)), hashes=hashes)
    return Component(
        type=ComponentType.LIBRARY,
        name=locked.name,
        version=locked.version,
        bom_ref=str(purl),
        purl=purl,
        scope=ComponentScope.REQUIRED if is_in_image(locked) else ComponentScope.EXCLUDED,
        external_references=[where],
        properties=[Property(name="python:marker", value=locked.marker)] if locked.marker else [],
    )


def bill_of(lock: str, project: dict[str, Any]) -> str:
    """Make the bill of a lock for `project`, the table of that name in pyproject.toml."""
    root = Component(
        type=ComponentType.APPLICATION,
        name=project["name"],
        version=__version__,
        description=project["description"],
        bom_ref=f"{project['name']}@{__version__}",
        licenses=[DisjunctiveLicense(id=project["license"])],
    )
    components = [component_of(each) for each in read_lock(lock)]
    bom = Bom(
        components=components,
        serial_number=UUID(bytes=sha256(f"{__version__}\n{lock}".encode()).digest()[:16], version=4),
    )
    bom.metadata.component = root
    bom.metadata.timestamp = None  # type: ignore[assignment]  # the schema does without, and no two runs would agree
    direct = {re.split(r"[\[<>=!~; ]", each, maxsplit=1)[0].lower() for each in project["dependencies"]}
    bom.register_dependency(root, [each for each in components if each.name in direct])
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def bill() -> str:
    """Make the bill of what is locked now."""
    return bill_of(LOCK.read_text(), tomllib.loads(PROJECT.read_text())["project"])


def main() -> int:
    """Write the bill to the path that is given."""
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(bill())
    sys.stdout.write(f"{path}: {len(read_lock(LOCK.read_text()))} packages\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
