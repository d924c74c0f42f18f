"""Plans for GPUs that are only described; with CUDA's compiler where that is installed."""

import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_config
from jax.sharding import SingleDeviceSharding

from cellseg_jax.errors import InputError
from cellseg_jax.planning import gpu, shapes
from cellseg_jax.planning.plan import plan, rows
from cellseg_jax.step import memory
from cellseg_jax.step.mesh import default_mesh

needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_plugins") is None or os.environ.get("JAX_PLATFORMS") != "cpu",
    reason='needs CUDA\'s compiler, pip install -e ".[cuda]", and JAX_PLATFORMS=cpu')


@pytest.mark.parametrize("topology, wanted", [
    ("h100", ("h100", 1)), ("h100x8", ("h100", 8)), ("rtx4090", ("rtx4090", 1)),
    ("rtx4090x2", ("rtx4090", 2)), ("l4x0", ("l4", 0)), ("local", None), ("v5e:2x4", None),
    ("h100x", None), ("h100:8", None), ("xh100", None), ("h1000", None)])
def test_a_topology_names_gpus_or_none(topology, wanted):
    assert gpu.parse(topology) == wanted


def test_descriptions_are_complete_and_plausible():
    for name, one in gpu.GPUS.items():
        text = gpu.description(one)
        assert text.count("{") == text.count("}") and f'"{one.name}"' in text, name
        assert one.bf16_teraflops == pytest.approx(2 * one.tf32_teraflops, rel=0.01)
        # Operations of a float32 unit per second are far below those of the matrix units.
        units = int(text.partition("fpus_per_core: ")[2].split()[0])
        float32 = 2 * units * one.multiprocessors * one.clock_ghz / 1e3
        assert 0.99 < one.bf16_teraflops / float32 < 17, name


def test_memory_is_the_share_that_jax_takes(monkeypatch):
    monkeypatch.delenv(gpu.FRACTION_VARIABLE, raising=False)
    assert gpu.memory_of("l4x4") == (0.75 * 22.5 * 2**30, "75% of 22.5 GiB, see --memory")
    monkeypatch.setenv(gpu.FRACTION_VARIABLE, "0.5")
    assert gpu.memory_of("l4")[0] == 0.5 * 22.5 * 2**30


def test_more_gpus_are_those_over_which_the_batch_divides():
    assert gpu.larger_hosts("rtx4090", 16) == ["rtx4090x2", "rtx4090x4", "rtx4090x8"]
    assert gpu.larger_hosts("h100x2", 12) == ["h100x4"]
    assert gpu.larger_hosts("h100x8", 16) == []


def test_the_margin_is_that_of_the_largest_convolution():
    line = ('  %{0} = ({1}[2,4]{{1,0}}, u8[0]{{0}}) custom-call(%a.1, %b), '
            'custom_call_target="__cudnn$convForward", backend_config={{}}\n')
    text = ("ENTRY %main (a: f32[]) -> f32[] {\n  %a.1 = f32[10,3]{1,0} parameter(0)\n"
            "  %b = bf16[7]{0} fusion(%a.1)\n" + line.format("c.1", "bf16")
            + line.format("c.2", "f32")
            + '  %d = f32[1000]{0} custom-call(%a.1), custom_call_target="__cublas$gemm"\n}')
    assert gpu.workspace(text) == 4 * 8 + 4 * 30 + 2 * 7
    assert gpu.workspace(text.replace("[10,3]", "[100000,100000]")) == 4 * 2**30
    assert gpu.workspace("ENTRY %main () -> f32[] {\n}") == 0


def test_gpus_that_cannot_be_planned_are_refused_in_one_line(monkeypatch):
    with pytest.raises(InputError, match="--topology: got 'h200x9'; expected 1 to 8 GPUs"):
        plan(tiny_config(), "h200x9")
    with pytest.raises(InputError, match="--topology: got 'h300'; .*h100.*rtx4090"):
        plan(tiny_config(), "h300")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'--topology: .*pip install -e "\.\[cuda\]"'):
        plan(tiny_config(), "h100")


@pytest.mark.slow
def test_operations_before_compilation_are_about_those_of_the_compiled_step():
    config = tiny_config()
    mesh = default_mesh(1, config.train.batch_size, 1, jax.devices()[:1])
    step = shapes.compiled_programs(config, mesh, shapes.Images(8, 32 * 32), resident=True,
                                    validation=False).train
    assert shapes.lowered_flops(config, 1) == pytest.approx(memory.flops(step), rel=0.4)
    assert shapes.lowered_flops(config, 4) == pytest.approx(
        shapes.lowered_flops(config, 1) / 4, rel=0.2)


# --- CUDA's compiler ------------------------------------------------------------------------------


@pytest.mark.slow
@needs_cuda
@pytest.mark.parametrize("name", gpu.GPUS)
def test_a_convolution_and_its_gradients_compile_for_each_gpu(name):
    device, = gpu.gpu_devices(name)
    assert device.platform == "gpu" and device.device_kind == gpu.GPUS[name].name
    place = SingleDeviceSharding(device)
    image, kernel = (jax.ShapeDtypeStruct(shape, np.float32, sharding=place)
                     for shape in ((4, 64, 64, 8), (3, 3, 8, 16)))

    def loss(image, kernel):
        return jnp.square(jax.lax.conv_general_dilated(
            image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))).sum()

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(image, kernel).compile()
    found = compiled.memory_analysis()
    assert found.argument_size_in_bytes >= 4 * (4 * 64 * 64 * 8 + 3 * 3 * 8 * 16)
    assert found.temp_size_in_bytes >= 4 * 4 * 64 * 64 * 16  # the cotangent
    assert gpu.workspace(compiled.as_text()) >= 4 * 4 * 64 * 64 * (8 + 16)


@pytest.mark.slow
@needs_cuda
def test_a_run_is_planned_for_two_gpus():
    config = tiny_config(train__batch_size=8)
    found = plan(config, "h100x2", search=False)
    assert found["fits"] and found["devices"] == 2 and found["device"] == "NVIDIA H100 80GB HBM3"
    assert found["memory"]["parameters"] == 4 * found["num_parameters"] == 4 * 577
    assert found["memory"]["temporaries"] > found["workspace"] > 0 and found["validation"] > 0
    assert 4 * 577 <= found["all_reduced"] < 8 * 577 and found["flops"] > 0
    assert any("workspaces" in note for note in found["notes"])
    assert "TF32 TFLOP/s" in dict(rows(found))["speed"]
