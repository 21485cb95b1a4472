"""The JSON that the gateway takes and gives, as schemas of OpenAPI 3.1: names and shapes are those of Walrus."""

from typing import Any

from economics.operations import EPOCHS_AHEAD_MAX
from p2pnode.gateway.orders import ENCODING
from p2pnode.gateway.owned import LIST_MAX

Schema = dict[str, Any]

COUNT: Schema = {"minimum": 0, "type": "integer"}
TEXT: Schema = {"type": "string"}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def record(description: str, *, optional: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """Return the schema of an object that has these properties and no others."""
    return {
        "additionalProperties": False,
        "description": description,
        "properties": properties,
        "required": sorted(properties.keys() - set(optional)),
        "type": "object",
    }


def _named(name: str, schema: Schema) -> Schema:
    """Return the schema of an object whose one property says what kind of thing it is."""
    properties: dict[str, Any] = {name: schema}
    return record(schema["description"], **properties)


def told(schema: Schema, description: str) -> Schema:
    return {**schema, "description": description}


def or_null(schema: Schema) -> Schema:
    return {**schema, "type": [schema["type"], "null"]}


CONTENT_TYPE = told(or_null(TEXT), "What is on chain as the blob's content type. Not in Walrus.")
NOTICE = told(TEXT, "What went wrong after the blob was stored. Not in Walrus.")


def build_schemas() -> dict[str, Schema]:
    """Return all schemas by name."""
    return {**_identifiers(), **_results(), **_owned(), **_state(), "Status": _status()}


def _identifiers() -> dict[str, Schema]:
    hexadecimal: Schema = {"pattern": "^0x[0-9a-f]{64}$", "type": "string"}
    return {
        "BlobId": {
            "description": "Names a blob by its content: 32 bytes in base64url without padding.",
            "examples": ["E7_nNXvFU_3qZVu3OH1yycRG7LZlyn1-UxEDCDDqGGU"],
            "pattern": "^[A-Za-z0-9_-]{43}$",
            "type": "string",
        },
        "QuiltPatchId": {
            "description": "Names one file of a quilt: blob ID, version, its number; 37 bytes in base64url.",
            "pattern": "^[A-Za-z0-9_-]{50}$",
            "type": "string",
        },
        "EntryId": told(
            hexadecimal,
            "Takes the place of a Sui object ID: the key under which the ledger's state has the entry of this blob "
            "under this storage (FORMATS.md 11).",
        ),
        "ReservationId": told(hexadecimal, "Takes the place of a Sui object ID: the ledger's name of this storage."),
    }


def _results() -> dict[str, Schema]:
    return {
        "BlobObject": _blob_object(),
        "BlobStoreResult": {
            "description": "What storing ended with.",
            "oneOf": [_newly_created(), _already_certified()],
        },
        "QuiltStoreResult": record(
            "What storing a quilt ended with.",
            blobStoreResult=ref("BlobStoreResult"),
            storedQuiltBlobs={"items": _stored_patch(), "type": "array"},
        ),
    }


def _blob_object() -> Schema:
    return record(
        "The wallet's entry of a blob.",
        blobId=ref("BlobId"),
        certifiedEpoch=told(COUNT, "The epoch in which the network first owed the blob."),
        contentType=CONTENT_TYPE,
        deletable={"type": "boolean"},
        encodingType={"enum": [ENCODING], "type": "string"},
        id=ref("EntryId"),
        registeredEpoch=told(COUNT, "The epoch of this request: the ledger knows no registration."),
        size=told(COUNT, "Bytes of the blob."),
        storage=record(
            "What pays for it.",
            endEpoch=told(COUNT, "The first epoch in which it has ended."),
            id=ref("ReservationId"),
            startEpoch=COUNT,
            storageSize=told(COUNT, "Bytes, in units of 64 KiB."),
        ),
    )


def _newly_created() -> Schema:
    length = told(COUNT, "What the encoded blob takes of the network, in bytes.")
    operations = {
        "registerFromScratch": record("Storage was bought.", encodedLength=length, epochsAhead=COUNT),
        "reuseStorage": record("Storage that the wallet held already was used.", encodedLength=length),
        "reuseAndExtend": record(
            "An entry of the wallet's was made to last longer.", encodedLength=length, epochsExtended=COUNT
        ),
    }
    return record(
        "The wallet keeps the blob anew, or for longer.",
        newlyCreated=record(
            "The wallet's entry.",
            blobObject=ref("BlobObject"),
            cost=told(COUNT, "FROST for storage and writing, without the transactions' fees."),
            notice=NOTICE,
            resourceOperation={"oneOf": [_named(*one) for one in operations.items()]},
            optional=("notice",),
        ),
    )


def _already_certified() -> Schema:
    return record(
        "The wallet keeps the blob for that long already: nothing was paid.",
        alreadyCertified=record(
            "The wallet's entry.",
            blobId=ref("BlobId"),
            contentType=CONTENT_TYPE,
            endEpoch=COUNT,
            event=record(
                "The ledger has no events: names the entry, for scripts that look here.",
                eventSeq=TEXT,
                txDigest=ref("EntryId"),
            ),
            notice=NOTICE,
            object=ref("EntryId"),
            optional=("notice",),
        ),
    )


def _stored_patch() -> Schema:
    return record(
        "One of its files, ascending by name.",
        identifier=TEXT,
        quiltPatchId=ref("QuiltPatchId"),
        range={
            "description": "The file's first byte in the blob, and the one behind its last.",
            "items": COUNT,
            "maxItems": 2,
            "minItems": 2,
            "type": "array",
        },
    )


def _owned() -> dict[str, Schema]:
    return {
        "OwnBlob": record(
            "One entry of the wallet's.",
            blobId=ref("BlobId"),
            certifiedHeight=told(COUNT, "The block since which the network owes it."),
            contentType=CONTENT_TYPE,
            deletable={"type": "boolean"},
            endEpoch=COUNT,
            epochsLeft=told(COUNT, "With the current one."),
            expiresMs=told(COUNT, "Unix time at which it ends at the latest."),
            id=ref("EntryId"),
            name=or_null(TEXT),
            size=told(or_null(COUNT), "Bytes; null where the blob has just ended."),
            storage=record("What pays for it.", id=ref("ReservationId"), storageSize=COUNT),
        ),
        "OwnBlobs": record(
            "A page of what the wallet keeps.",
            blobs={"items": ref("OwnBlob"), "maxItems": LIST_MAX, "type": "array"},
            epoch=told(COUNT, "The current one."),
            nextCursor=told(or_null(TEXT), "Goes into `cursor` for the next page; null for the last."),
        ),
        "Deleted": record(
            "Entries that are no more.",
            blobId=ref("BlobId"),
            deleted=told(COUNT, "How many."),
            permanent=told(COUNT, "How many stay until they expire."),
            storageSize=told(COUNT, "Bytes of storage that are free for the next blob."),
        ),
        "Epochs": {"maximum": EPOCHS_AHEAD_MAX, "minimum": 1, "type": "integer"},
    }


def _state() -> dict[str, Schema]:
    flag: Schema = {"type": "boolean"}
    return {
        "GatewayStatus": record(
            "How the gateway is.",
            cache={**record("On the disk.", quota_bytes=COUNT, used_bytes=COUNT), "type": ["object", "null"]},
            chain=told({"pattern": "^[0-9a-f]{64}$", "type": "string"}, "The chain's ID."),
            downloads=told(COUNT, "Under way."),
            epoch=or_null(COUNT),
            height=told(or_null(COUNT), "Of the newest block that was proven to it."),
            limits=record("What it takes.", blob_bytes=COUNT, downloads=COUNT, quilt_bytes=COUNT, uploads=COUNT),
            ready=flag,
            stores=told(flag, "Whether it has a wallet."),
            uptime_s=COUNT,
            version=TEXT,
        ),
        "Live": record("It runs.", live=flag),
        "Patches": {
            "items": record(
                "A file of a quilt.",
                identifier=TEXT,
                patch_id=ref("QuiltPatchId"),
                tags={"additionalProperties": TEXT, "type": "object"},
            ),
            "type": "array",
        },
        "Ready": record("Whether blobs can be had.", ready=flag, why=TEXT, optional=("why",)),
    }


def _status() -> Schema:
    detail = {
        "description": "`reason` is a word for programs, `metadata` has such facts as `limitBytes`.",
        "properties": {
            "@type": TEXT,
            "domain": TEXT,
            "metadata": {"type": "object"},
            "reason": TEXT,
        },
        "type": "object",
    }
    return record(
        "An error.",
        error=record(
            "Its cause and the next step.",
            code=told({"maximum": 599, "minimum": 400, "type": "integer"}, "The HTTP status."),
            details={"items": detail, "type": "array"},
            message=TEXT,
            status=told(TEXT, "The name of google.rpc.Code."),
        ),
    )
