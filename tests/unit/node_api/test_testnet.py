"""A testnet on disk: complete, private where it must be, the same chain for all, readable again."""

import ssl
from pathlib import Path

import pytest

from consensus.identifiers import compute_chain_id
from node.config import ConfigError, NodeConfig
from node.genesis import GenesisError, load_genesis
from node.keystore import load_account_key
from node.processes import get_pid
from node.testnet import Profile, Testnet, TestnetError, init_testnet

CONFIGS = Path(__file__).parents[3] / "configs"


def test_every_node_can_start_from_its_directory(tmp_path: Path) -> None:
    testnet = init_testnet(tmp_path / "net", 4, 2)
    chains, ports = set(), set()
    for node in testnet.nodes:
        config = NodeConfig.load(testnet.get_config_path(node.name))
        assert config.check_files() == ()
        genesis = load_genesis(config.genesis)
        chains.add(compute_chain_id(genesis))
        ports |= {config.api.port, config.operator.port, config.peer.port}
        assert load_account_key(config.account_key).address.hex() == node.address
        assert len(config.peer.peers) == 3
        assert config.advertised not in config.peer.peers
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(config.tls.certificate, config.tls.key)
        context.load_verify_locations(config.tls.authority)
    assert len(chains) == 1
    assert len(ports) == 12
    assert len(genesis.validators) == 4
    assert {validator.stake for validator in genesis.validators} == {Profile().stake}
    assert genesis.mining_organisations == ("hospital-1", "hospital-2", "hospital-3")
    assert [node.roles[-1] for node in testnet.nodes] == ["custody", "miner", "miner", "contributor"]
    assert Testnet.load(tmp_path / "net") == testnet


@pytest.mark.parametrize("nodes", [2, 3, 4, 7])
def test_two_thirds_of_stake_judge_on_pairs_of_their_own(tmp_path: Path, nodes: int) -> None:
    testnet = init_testnet(tmp_path / "net", nodes)
    settings = [NodeConfig.load(testnet.get_config_path(node.name)).verdict for node in testnet.nodes]
    judges = [verdict for verdict in settings if verdict.is_given]
    assert 3 * len(judges) >= 2 * nodes
    assert len({verdict.phantom_seed for verdict in judges}) == len(judges)


def test_secrets_are_private(tmp_path: Path) -> None:
    init_testnet(tmp_path / "net", 2)
    secrets = list((tmp_path / "net").rglob("*.key"))
    assert len(secrets) == 5
    assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}


def test_compose_nodes_name_each_other_and_keep_the_operator_inside(tmp_path: Path) -> None:
    testnet = init_testnet(tmp_path / "net", 3, compose=True)
    config = NodeConfig.load(testnet.get_config_path("node2"))
    assert config.peer.peers == ("node1:8102", "node3:8108")
    assert (config.api.host, config.operator.host) == ("0.0.0.0", "127.0.0.1")


@pytest.mark.parametrize("name", ["testnet.yaml", "minimal.yaml"])
def test_profiles_make_testnets(tmp_path: Path, name: str) -> None:
    profile = Profile.load(CONFIGS / name)
    testnet = init_testnet(tmp_path / "net", 2, profile=profile)
    genesis = load_genesis(testnet.get_directory("node1") / "genesis.json")
    assert genesis.params.idle_ms == profile.params["idle_ms"]


@pytest.mark.parametrize(
    ("text", "field"),
    [("base_prot: 1", "base_prot"), ("stake: 0", "stake"), ("params: {idle_ms: x}", "params.idle_ms")],
)
def test_a_wrong_profile_is_refused_by_field(tmp_path: Path, text: str, field: str) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Profile.load(path)
    assert caught.value.problems[0].field == field


def test_what_can_not_be_made_is_refused(tmp_path: Path) -> None:
    for nodes, miners in ((1, None), (65, None), (3, 3)):
        with pytest.raises(TestnetError, match=r"--nodes|--miners"):
            init_testnet(tmp_path / "a", nodes, miners)
    with pytest.raises(TestnetError, match=r"params\.idle: unknown"):
        init_testnet(tmp_path / "b", 2, profile=Profile(params={"idle": 1}))
    init_testnet(tmp_path / "c", 2)
    with pytest.raises(TestnetError, match="not empty"):
        init_testnet(tmp_path / "c", 2)
    with pytest.raises(TestnetError, match="testnet init"):
        Testnet.load(tmp_path / "d")
    with pytest.raises(TestnetError, match="no node node9"):
        Testnet.load(tmp_path / "c").select(("node9",))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"stake": 100000000', '"stake": 0', "validators.0.stake"),
        ('"min_block_ms": 500,', "", "min_block_ms missing"),
        ('"idle_ms"', '"idle"', r"idle_ms missing|params\.idle"),
        ('"name": "testnet"', '"name": "testnet", "extra": 1', "extra"),
    ],
)
def test_a_wrong_genesis_is_refused_by_field(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = init_testnet(tmp_path / "net", 2).directory / "genesis.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(GenesisError, match=words):
        load_genesis(path)


def test_a_stale_pid_is_nobody(tmp_path: Path) -> None:
    assert get_pid(tmp_path) is None
    (tmp_path / "node.pid").write_text('{"pid": 1, "started": "7"}')
    assert get_pid(tmp_path) is None
