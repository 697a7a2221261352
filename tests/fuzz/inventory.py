"""Who covers the decoders that are not the codec's: each reads raw bytes, and has a target or a reason.

The codec needs no list: its classes are found by looking (`sources.find_decoded_classes`).
"""

COVERED: dict[str, str] = {
    "consensus.crypto:verify": "rule.transaction",
    "consensus.codec:_read_number": "codec.Block",
    "consensus.tree:_decode_node": "ledger.node",
    "consensus.tree:verify_proof": "rule.proof",
    "fusion_model.importers.png:_load_grey": "image.png",
    "fusion_model.importers.png:_read_rows": "image.pairs",
    "he.gate:_check_bodies": "gate.bundle",
    "he.gate:_check_keys": "gate.relin_keys",
    "he.spec:PolynomialSpec.decode": "model.polynomial",
    "node.api.client:_parse_event": "client.event",
    "node.api.payloads:_convert": "api.payload",
    "node.api.requests:get_cursor": "api.query",
    "node.api.requests:parse_hash": "api.query",
    "node.api.requests:read_json": "api.SubmitModel",
    "node.api.routes:_read_transaction": "api.SubmitModel",
    "node.light:_decode": "codec.SetProof",
    "node.manifest:Manifest.decode": "blobs.fitting_manifest",
    "node.cli.fuse:_get_model": "file.model",
    "node.cli.audit:rebuild_block": "client.block",
    "node.cli.audit:rebuild_transaction": "client.block",
    "node.config:read_yaml": "file.config",
    "node.genesis:load_genesis": "file.genesis",
    "node.keystore:load_account_key": "file.account_key",
    "node.ledger.mark:load_mark": "ledger.mark",
    "node.ledger.schema:decode_header_key": "ledger.header_key",
    "node.ledger.schema:decode_height_key": "ledger.height_key",
    "node.ledger.schema:decode_index": "ledger.index",
    "node.ledger.schema:decode_location": "ledger.location",
    "node.ledger.schema:decode_meta": "ledger.meta",
    "node.ledger.schema:decode_subject_key": "ledger.subject_key",
    "node.ledger.schema:decode_version": "ledger.version",
    "node.ledger.snapshot:_decode_range": "ledger.staged",
    "node.processes:get_pid": "file.pid",
    "node.testnet:Testnet.load": "file.testnet",
    "node.tls:load_identity": "file.certificate",
    "workloads.fusion:FusionSpec.decode": "model.fusion",
}
"""Place in the sources, and the target that reaches it."""

CHECKED = "what it reads was checked by a decoder with a target: "
OWN = "reads what this process, or its operator's own tool, has just written: "

EXEMPT: dict[str, str] = {
    "consensus.crypto:SigningKey.__init__": CHECKED + "node.keystore",
    "consensus.tree:_compute_path": "a hash of ours",
    "he.gradient:_Circuit.get_residues": CHECKED + "he.gate",
    "node.api.client:Client._check": "pydantic alone, of the operator's own node",
    "node.api.client:Client._request": "pydantic alone, of the operator's own node",
    "node.api.client:Client.put_blob": CHECKED + "pydantic, hexadecimal by its pattern",
    "node.api.client:Client.sign_and_submit": CHECKED + "pydantic, hexadecimal by its pattern",
    "node.api.client:Client.submit_transaction": CHECKED + "pydantic, hexadecimal by its pattern",
    "node.api.routes:get_block": "hexadecimal by its pattern",
    "node.blobs:BlobStore._scan": "names of the store's own files, hexadecimal by a check",
    "node.cli.audit:audit": CHECKED + "pydantic, hexadecimal by its pattern",
    "node.cli.common:parse_hash": "an argument that the operator types",
    "node.cli.data:encrypt": CHECKED + "pydantic, hexadecimal by its pattern",
    "node.cli.fuse:evaluate": CHECKED + "pydantic, hexadecimal by its pattern",
    "node.cli.fuse:fuse": CHECKED + "pydantic, hexadecimal by its pattern",
    "node.cli.governance:_read": CHECKED + "api.payload: the same models, hexadecimal by its pattern",
    "node.cli.task:_read_contribution": OWN + "`bmif data encrypt`",
    "node.gossip.book:AddressBook._draw": "a hash of ours",
    "node.ledger.level:LevelStore._check_commits": "a row that the log's check sums guard",
    "node.miner:Miner._drop_bundles": "four bytes of a key of the node's own",
    "node.processes:probe": "the status of the operator's own testnet",
    "node.retention:Pruner._date": "eight bytes of a record of the node's own",
    "node.sync.service:parse_checkpoint": CHECKED + "file.config, hexadecimal by its pattern",
    "node.testnet:build_genesis": OWN + "addresses of keys made in the same call",
    "node.tls:_load": "OpenSSL reads the node's own files, at start",
    "node.tls:make_certificate": OWN + "an authority made in the same call",
    "workloads.custody:PreparedBatch.load": OWN + "the custody's prepared batches, by numpy without pickle",
    "workloads.noise:draw_gaussian": "a stream of ours",
}
"""Place in the sources, and why it needs no target."""
