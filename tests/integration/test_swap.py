"""What a worker takes of another configuration while it runs, and nobody else is told of."""

import yaml

from ..support.dataplane import data_plane, published
from ..support.gateway import one_model


def test_how_long_a_name_is_good_is_taken_at_once() -> None:
    config = one_model("http://localhost:9")
    with data_plane(config) as plane:
        resolver = plane.worker._resolver
        assert resolver.ttl_s == 300
        config["upstream"] = {"dns_ttl_s": 7}
        plane.call(lambda: plane.worker.swap(published(yaml.safe_dump(config))))
        assert plane.worker._resolver is resolver
        assert resolver.ttl_s == 7
