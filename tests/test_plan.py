"""The attention kernels that a plan names: here, and for devices that are not here."""

import pytest

from gptjax.errors import BadInput
from gptjax.models.config import AttentionConfig
from gptjax.ops.shards import on_platform
from gptjax.parallel.mesh import abstract_mesh
from gptjax.plan import make_plan, measure, settled
from gptjax.planned_kernels import kernels_line, kernels_of
from tests.conftest import changed


@pytest.fixture(scope="module")
def wide(tiny):
    """In bfloat16 and long enough for every kernel."""
    model = {"context_length": 256, "compute_dtype": "bfloat16", "num_layers": 1}
    return changed(tiny, model=model, data={"sequence_length": 256, "batch_size": 16})


def with_kernel(experiment, kernel: str, data: int):
    attention = AttentionConfig(pattern="strided:16", kernel=kernel)
    return changed(experiment, model={"attention": attention}, mesh={"data": data})


def said(plan) -> str:
    shape = tuple(plan.mesh_shape.values())
    return kernels_line(plan.experiment, shape, plan.devices_here, plan.kernel)


def test_kernels_here_and_elsewhere(wide):
    absent = with_kernel(wide, "auto", 16)
    plan = make_plan(absent, measure=False)
    assert said(plan) == ("attention kernel here: blocked, on a gpu: cudnn, on a tpu: splash")
    here = make_plan(with_kernel(wide, "auto", 8), measure=False)
    assert said(here) == "attention kernel here: blocked"


def test_a_mesh_of_another_platform_names_its_kernels(wide):
    import jax

    mesh = abstract_mesh((2, 1, 1))
    with jax.sharding.use_abstract_mesh(on_platform(mesh, "tpu")):
        assert kernels_of(with_kernel(wide, "auto", 1)) == "splash"


@pytest.mark.parametrize(("kernel", "platform"), [("splash", "tpu"), ("cudnn", "gpu")])
def test_a_kernel_of_absent_devices_is_planned_for_them(wide, kernel, platform):
    plan = make_plan(with_kernel(wide, kernel, 16), measure=False)
    assert said(plan) == f"attention kernel on a {platform}: {kernel}"
    with pytest.raises(BadInput, match="and this is cpu"):
        make_plan(with_kernel(wide, kernel, 8), measure=False)


def test_what_is_interpreted_is_not_timed(wide):
    seconds, why = measure(with_kernel(wide, "block_list", 1))
    assert seconds is None and "interpreted" in why


def test_a_length_in_flops_is_settled(tiny):
    one = tiny.step_flops.training
    plan = make_plan(changed(tiny, train={"steps": 0, "tokens": 9, "flops": 7 * one}), False)
    said = settled(plan)
    assert said["train.tokens"] == "1792 (by train.flops, in the place of 9)"
    assert said["train.steps"] == "7 (derived)" and "in whole steps, for" in said["train.flops"]
