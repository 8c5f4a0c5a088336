"""One device, many, slices, sharded parameters: the same losses, and each continues what each has saved."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks.collectives import collectives, groups
from fasseg_jax.runtime.distributed import DATA, SLICE, batch_axes, make_mesh, state_shardings
from tests.helpers.training_runs import ROOT, TINY, environment

SLICES = ({0, 1, 2, 3}, {4, 5, 6, 7})
# Four decoder layers: HRCA is the last. Only few steps are compared: rounding differs between layouts, and sooner or
# later it moves a sample across the border between two pixels, where the gradient jumps.
FIELDS = {"train.steps": 4, "train.ema_decay": 0.5, "model.decoder.num_layers": 4}


@pytest.fixture(scope="module")
def results(tmp_path_factory, emulator):
    folder, bucket = tmp_path_factory.mktemp("layouts"), emulator.new_folder()
    fields = {name: eval(value) if isinstance(value, str) else value for name, value in {**TINY, **FIELDS}.items()}
    subprocess.run(
        [sys.executable, "-m", "tests.helpers.layouts", folder, bucket, json.dumps(fields)],
        cwd=ROOT,
        env=environment(devices=8),
        check=True,
        timeout=3600,
    )
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_all_layouts_have_the_losses_of_one_device(results):
    expected = results["losses"]["one"]
    assert len(expected) == 4 and len(results["losses"]) == 4
    for name, losses in results["losses"].items():
        np.testing.assert_allclose(losses, expected, rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_each_layout_continues_what_each_has_saved(results):
    assert len(results["continued"]) == 16
    for name, losses in results["continued"].items():
        reader, writer = name.split(" after ")
        compare = np.testing.assert_array_equal if reader == writer else np.testing.assert_allclose
        tolerance = {} if reader == writer else {"rtol": 1e-5}
        compare(losses, results["losses"][writer][2:], err_msg=name, **tolerance)


@pytest.mark.slow
def test_only_sums_cross_between_slices(results):
    """Parameters are gathered within a slice; what crosses of a sharded gradient is each device's part."""
    within, across, everywhere = [], [], []
    for collective in results["collectives"]["sharded slices"]:
        members = [set(group) for group in collective["groups"]]
        if all(any(group <= part for part in SLICES) for group in members):
            within.append(collective)
        elif all(len(group & part) == 1 for group in members for part in SLICES):
            across.append(collective)
        else:
            assert members == [SLICES[0] | SLICES[1]]
            everywhere.append(collective)
    assert {collective["kind"] for collective in within} >= {"all-gather", "all-reduce"}
    assert {collective["kind"] for collective in [*across, *everywhere]} == {"all-reduce"}
    gathered = max(collective["elements"] for collective in within if collective["kind"] == "all-gather")
    assert max(collective["elements"] for collective in across) == gathered / 4
    assert max(collective["elements"] for collective in everywhere) < 2**12  # gradients of arrays that are not sharded


@pytest.mark.slow
def test_without_sharded_parameters_there_are_sums_only(results):
    assert {collective["kind"] for collective in results["collectives"]["slices"]} == {"all-reduce"}


class Device:
    """Of a TPU: it says in which slice it lies."""

    def __init__(self, number, slice_index):
        self.id, self.slice_index, self.platform, self.device_kind = number, slice_index, "tpu", "TPU v5 lite"
        self.process_index = number // 2


def test_devices_say_in_which_slice_they_lie():
    mesh = make_mesh([Device(number, index) for number, index in enumerate([1, 0, 0, 1, 1, 0])])
    assert mesh.axis_names == (SLICE, DATA) == batch_axes(mesh)
    assert [[device.id for device in row] for row in mesh.devices] == [[1, 2, 5], [0, 3, 4]]
    shardings = state_shardings(jax.ShapeDtypeStruct((7, 6, 4096), np.float32), mesh, shard_parameters=True)
    assert shardings.spec == jax.P(None, DATA)  # three devices of a slice divide 6, not 4096
    assert make_mesh([Device(number, 3) for number in range(4)]).axis_names == (DATA,)
    with pytest.raises(ValueError, match="same number of devices, and here are 2 in slice 0, 1 in slice 1"):
        make_mesh([Device(number, index) for number, index in enumerate([0, 0, 1])])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("replica_groups={{0,1},{2,3}}, use", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[4], dim", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), dim", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}, use", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2], device_ids=([2,2]T(1,0)) {'axis_1'}, use", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0','axis_1'}, use", [[0, 1, 2, 3]]),
    ],
)
def test_groups_of_devices_are_read(text, expected):
    assert groups(text) == expected


def test_what_crosses_slices_of_tpus_is_found():
    attributes = '_xla_host_transfer_rendezvous="all-reduce_0",_xla_megascale_transfer_type="ALL_REDUCE"'
    line = (
        f"%send = (f32[2,8,128]{{2,1,0}}, u32[], token[]) send(%sum, %token), is_host_transfer=true, {{{attributes}}}"
    )
    assert collectives(f"{line}\n%done = token[] send-done(%send), {{{attributes}}}") == [
        {"kind": "all-reduce", "elements": 2048, "groups": []}
    ]
