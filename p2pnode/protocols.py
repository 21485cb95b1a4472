"""The names of protocols and topics: each has the chain's tag, so that networks never mix (FORMATS.md 7, 12, 15)."""

from economics.genesis import Genesis


def storage_protocol(genesis: Genesis) -> str:
    return f"/p2pnode/{genesis.chain_tag}/storage/2"


def chain_protocol(genesis: Genesis) -> str:
    return f"/p2pnode/{genesis.chain_tag}/chain/2"


def consensus_protocol(genesis: Genesis) -> str:
    return f"/p2pnode/{genesis.chain_tag}/consensus/2"


def commitments_topic(genesis: Genesis) -> str:
    return f"/p2pnode/{genesis.chain_tag}/commitments/1"


def transactions_topic(genesis: Genesis) -> str:
    return f"/p2pnode/{genesis.chain_tag}/transactions/1"


def blocks_topic(genesis: Genesis) -> str:
    return f"/p2pnode/{genesis.chain_tag}/blocks/1"
