import jax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from gptjax.errors import BadInput
from gptjax.parallel import MeshConfig, Rules, make_mesh
from gptjax.parallel.mesh import abstract_mesh, check_mesh


def test_the_rest_of_the_devices_goes_to_data():
    assert make_mesh(MeshConfig()).shape == {"data": 8, "fsdp": 1, "tensor": 1}
    assert make_mesh(MeshConfig(fsdp=2, tensor=2)).shape == {"data": 2, "fsdp": 2, "tensor": 2}
    mesh = make_mesh(MeshConfig(data=1))
    assert mesh.size == 1 and set(mesh.axis_types) == {AxisType.Explicit}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (MeshConfig(4, 4, 1), "takes 16 devices and there are 8"),
        (MeshConfig(fsdp=3), "does not divide 8"),
        (MeshConfig(tensor=0), "mesh.tensor is 0"),
        (MeshConfig(data=-2), "mesh.data is -2"),
    ],
)
def test_impossible_meshes_are_refused(config, words):
    with pytest.raises(BadInput, match=words):
        check_mesh(config, 8)


def test_a_refusal_names_the_nearest_possible_meshes():
    with pytest.raises(BadInput, match=r"nearest possible: .*\(data=1, fsdp=4, tensor=2\)"):
        check_mesh(MeshConfig(1, 4, 4), 8)

    def three_heads(data, fsdp, tensor):
        return "3 heads" if 3 % tensor else None

    with pytest.raises(BadInput, match=r"3 heads; nearest possible: .*tensor=1"):
        check_mesh(MeshConfig(1, 1, 2), 8, three_heads)


def test_a_plan_is_told_what_it_would_take_and_what_is_possible_here():
    def two_heads(data, fsdp, tensor):
        return f"2 heads by {tensor}" if 2 % tensor else None

    words = r"takes 3 devices and there is 1; 2 heads by 3; .*: \(data=1, fsdp=1, tensor=1\) on 1 d"
    for planned in (1, 3):
        with pytest.raises(BadInput, match=words):
            check_mesh(MeshConfig(tensor=3), planned, two_heads, here=1)
    check_mesh(MeshConfig(fsdp=4, tensor=2), 8, two_heads, here=1)
    with pytest.raises(BadInput, match="takes 8 devices and there is 1; nearest"):
        check_mesh(MeshConfig(fsdp=4, tensor=2), 1, two_heads)


def test_meshes_over_fewer_devices_are_named_where_no_other_is_possible():
    def three_rows(data, fsdp, tensor):
        return "3 rows" if 3 % (data * fsdp) or tensor > 2 else None

    with pytest.raises(BadInput, match=r"possible: \(data=3, fsdp=1, tensor=2\), .* on 8 devices$"):
        check_mesh(MeshConfig(), 8, three_rows)
    with pytest.raises(BadInput, match="possible: none on 8 devices"):
        check_mesh(MeshConfig(), 8, lambda *shape: "no")
    with pytest.raises(BadInput, match="give at most 1048576"):
        check_mesh(MeshConfig(1 << 20, 1 << 20, 1), 8)


def test_rules():
    mesh, rules = abstract_mesh((2, 2, 2)), Rules()
    assert rules.spec(("embed", "heads", "head_dim"), (8, 4, 3), mesh) == P("fsdp", "tensor", None)
    assert rules.gathered_spec(("embed", "heads"), (8, 4), mesh) == P(None, "tensor")
    assert rules.spec(("batch", "seq", None), (8, 5, 7), mesh) == P(("data", "fsdp"), None, None)
    # 257 bytes are split over no two devices, and one key/value head is shared.
    assert rules.spec(("vocab", "kv_heads"), (257, 1), mesh) == P(None, None)
    with pytest.raises(BadInput, match="heads = 3 is not divisible by tensor = 2"):
        rules.spec(("heads",), (3,), mesh)


def test_nothing_is_placed_without_a_mesh():
    from gptjax.parallel import gathered, place

    x = jax.numpy.ones((3, 5))
    assert gathered(x, ("embed", "mlp"), Rules()) is x
    assert place(x, ("batch", None), Rules()) is x
